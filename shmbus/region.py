"""Regions: everything that mmap can do, typed.

A region is a mapped piece of memory with a protection (:class:`Prot`), a visibility (:class:`Visibility`) and
a backing. Its bytes are read and written through the buffer protocol (``memoryview(region)``,
``np.frombuffer``) or by index. The calls on the memory itself are native (``_core.Region``); this face gives
them types, says what went wrong in the words of the request, and owns what a mapping does not: the descriptor
and the name.

Rules that hold throughout:

* ``close()``, and a ``protect()`` that takes a right away, raise ``BufferError`` while views exist: memory
  never goes away under a view.
* Space of what shmbus makes is reserved before it is mapped. A file of the user's is left as it is: where it
  is sparse on a full disk, or is cut short by somebody else, touching it is SIGBUS, as with any mapping
  (:meth:`Region.populate` reports that as an error instead).
* A private region is not a snapshot: until this process writes to a page, it may still see what others write
  to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

from shmbus import _core
from shmbus.backing import (
    HasFileno,
    check_length,
    create_file,
    create_memfd,
    create_named,
    create_shm,
    open_file,
    open_named,
    unlink_named,
    usable_length,
)
from shmbus.errors import Closed, Refused
from shmbus.limits import PAGE_BYTES
from shmbus.protection import READ_WRITE, Advice, Prot, check_kind, raise_mapping_error, writes_through
from shmbus.settings import Backing, Visibility
from shmbus.space import check_memory_room, explain_lock, explain_no_space

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

__all__ = ["Advice", "Prot", "Region", "Visibility", "create_file", "create_memfd", "create_shm"]


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a region's bytes come from, and what it has to give back when it closes."""

    what: str
    backing: Backing
    fd: int = -1
    name: str | None = None
    created: bool = False
    offset: int = 0

    def release(self, creator_pid: int) -> None:
        """Close the descriptor; the creator, and not a child forked from it, takes the name away."""
        if self.fd < 0:
            return
        if self.created and self.name is not None and os.getpid() == creator_pid:
            unlink_named(self.name, self.fd)
        os.close(self.fd)


class Region(_core.Region):
    """A mapped piece of memory; a buffer, and a context manager that unmaps it.

    Made by one of :meth:`map`, :meth:`anonymous`, :meth:`named` and :meth:`memfd`. A region may be used by
    several threads at once, and stays mapped in forked children.

    Example:
        >>> with Region.memfd("scratch", 4096) as region:
        ...     region[0:5] = b"hello"
        ...     region[0:5]
        b'hello'
    """

    __slots__ = ("__weakref__", "_origin", "_release")

    _origin: _Origin
    _release: weakref.finalize[..., Any]

    # ---- making --------------------------------------------------------------------------------------------

    @classmethod
    def map(  # type: ignore[override]  # the native one takes numbers
        cls,
        file: str | os.PathLike[str] | HasFileno | int,
        length: int | None = None,
        *,
        prot: Prot = READ_WRITE,
        visibility: Visibility = Visibility.SHARED,
        offset: int = 0,
        mirrored: bool = False,
    ) -> Self:
        """Map a file.

        Args:
            file: a path, which is opened as the protection needs it; or an open file or descriptor, which
                stays yours and may be closed at once.
            length: bytes; None: up to the end of the file.
            prot: READ, WRITE and EXEC, or NONE.
            visibility: with SHARED what is written reaches the file and everybody who maps it; with PRIVATE a
                page that is written to becomes this process's own.
            offset: where in the file the region starts: bytes, a multiple of the page.
            mirrored: map the same bytes twice, back to back; the length is then a multiple of the page.

        Raises:
            TypeError: an argument is of another type, such as a number for ``prot``.
            Refused: the file is empty or cannot be mapped, ends before the region does, or was opened for
                less than ``prot`` asks for; or the offset or the length is not possible.
            NoSpace: there is no room for it in this process's address space.
            OSError: the file cannot be opened.
        """
        writable = writes_through(prot, visibility)
        fd, what = open_file(file, writable=writable)
        return cls._adopt(_Origin(what, Backing.FILE, fd, offset=offset), length, prot, visibility, mirrored)

    @classmethod
    def anonymous(
        cls,
        length: int,
        *,
        prot: Prot = READ_WRITE,
        visibility: Visibility = Visibility.SHARED,
        mirrored: bool = False,
    ) -> Self:
        """Map fresh memory, all zeros, that only this process and children that it forks later can see.

        Args:
            length: bytes.
            prot: as for :meth:`map`.
            visibility: SHARED: forked children see the same bytes; PRIVATE: they get copies.
            mirrored: as for :meth:`map`.

        Raises:
            TypeError, Refused: as for :meth:`map`.
            NoSpace: the machine, or the control group, has not so much memory. Pages are taken as they are
                touched; :meth:`populate` takes them all now.
        """
        writes_through(prot, visibility)
        origin = _Origin("anonymous region", Backing.ANONYMOUS)
        check_memory_room(check_length(length), origin.what)
        return cls._adopt(origin, length, prot, visibility, mirrored)

    @classmethod
    def named(
        cls,
        name: str,
        length: int | None = None,
        *,
        create: bool = False,
        prot: Prot = READ_WRITE,
        visibility: Visibility = Visibility.SHARED,
        mirrored: bool = False,
    ) -> Self:
        """Create or open POSIX shared memory, an entry in ``/dev/shm`` that anybody with the right can open.

        The creator's ``close()``, or the clean end of its process, takes the name away; who has it mapped
        goes on. When the creator is killed the name stays: where that matters, pass a :meth:`memfd`.

        Args:
            name: a slash, then a name without one: ``"/frames"``.
            length: bytes; needed to create. To open, None means all of it.
            create: make it; the name must be free then.
            prot: as for :meth:`map`.
            visibility: as for :meth:`map`.
            mirrored: as for :meth:`map`.

        Raises:
            TypeError: as for :meth:`map`.
            Refused: the name is taken (create), unknown (open) or not possible; or as for :meth:`map`.
            NoSpace: ``/dev/shm``, the machine or the control group has not so much room.
        """
        writable = writes_through(prot, visibility)
        if not create:
            fd = open_named(name, writable=writable)
        elif length is None:
            raise TypeError("a named region is created with a length in bytes")
        else:
            fd = create_named(name, length)
        origin = _Origin(f"named region {name!r}", Backing.SHM, fd, name, created=create)
        return cls._adopt(origin, length, prot, visibility, mirrored)

    @classmethod
    def memfd(
        cls,
        label: str,
        length: int,
        *,
        prot: Prot = READ_WRITE,
        visibility: Visibility = Visibility.SHARED,
        mirrored: bool = False,
    ) -> Self:
        """Map a new sealed memfd: memory without a name, shared by passing its descriptor (:meth:`fileno`).

        Args:
            label: what ``/proc/PID/maps`` shows for it; need not be unique.
            length: bytes, all of them reserved.
            prot: as for :meth:`map`.
            visibility: as for :meth:`map`.
            mirrored: as for :meth:`map`.

        Raises:
            TypeError, Refused: as for :meth:`map`.
            NoSpace: the machine, or the control group, has not so much memory.
        """
        writes_through(prot, visibility)
        origin = _Origin(f"memfd {label!r}", Backing.MEMFD, create_memfd(label, check_length(length)))
        return cls._adopt(origin, length, prot, visibility, mirrored)

    @classmethod
    def _adopt(
        cls,
        origin: _Origin,
        length: int | None,
        prot: Prot,
        visibility: Visibility,
        mirrored: bool,
    ) -> Self:
        """Map the origin, which becomes the region's own, or is released when that fails."""
        try:
            if origin.fd >= 0:
                length = usable_length(origin.fd, origin.what, origin.offset, length)
            length = check_length(length)
            if mirrored and length % PAGE_BYTES:
                raise Refused(
                    f"a mirrored region is a multiple of the page ({PAGE_BYTES} bytes), not {length}"
                )
            shared = visibility is Visibility.SHARED
            try:
                self = super().map(origin.fd, length, prot.value, shared, origin.offset, mirrored)
            except OSError as error:
                raise_mapping_error(error, origin.what, origin.fd, length, prot, visibility)
            self._origin = origin
            self._release = weakref.finalize(self, origin.release, os.getpid())
        except BaseException:
            origin.release(os.getpid())
            raise
        self._release.atexit = origin.created  # the rest ends with the process anyway
        return self

    # ---- ending --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unmap the region and close its descriptor; the creator of a named region takes its name away.

        Repeating it is harmless. A region that is dropped without it is closed too.

        Raises:
            BufferError: views of the region exist, or another thread is inside a call on it; nothing has
                changed.
        """
        super().close()
        self._release()

    def unlink(self) -> None:
        """Take the name of a named region away; who has it mapped goes on. Repeating it is harmless.

        Raises:
            Refused: the region is not a named one.
            Closed: the region is closed.
        """
        if self._origin.name is None:
            raise Refused(f"{self._origin.what} has no name to take away")
        unlink_named(self._origin.name, self.fileno())

    def __enter__(self) -> Self:
        if self.closed:
            raise self._closed_error()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # The views that the failed body still holds are not what went wrong; the last of them unmaps.
        with contextlib.suppress(BufferError):
            self.close()

    # ---- the memory ----------------------------------------------------------------------------------------

    def protect(self, prot: Prot) -> None:  # type: ignore[override]  # the native one takes a number
        """Change what may be done with the bytes (mprotect).

        Raises:
            TypeError: ``prot`` is no :class:`Prot`.
            BufferError: it would take a right away while views exist, or another thread is inside a call.
            Refused: the file was opened for less than that.
            Closed: the region is closed.
        """
        check_kind("prot", prot, Prot)
        try:
            with self._typed("protect"):
                super().protect(prot.value)
        except OSError as error:
            raise_mapping_error(error, self._origin.what, self._origin.fd, self.length, prot, self.visibility)

    def lock(self) -> None:
        """Keep every page in memory until :meth:`unlock` or :meth:`close` (mlock), faulting all of them in.

        Raises:
            NoSpace: beyond RLIMIT_MEMLOCK, or what the machine has.
            Refused: ``Prot.NONE`` lets nothing be faulted in.
            Closed: the region is closed.
        """
        if self.prot is Prot.NONE:
            raise Refused(
                f"{self._origin.what} has Prot.NONE, and cannot be locked; protect() it otherwise first"
            )
        try:
            with self._typed("lock"):
                super().lock()
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EPERM):
                raise explain_lock(len(self), self._origin.what) from error
            raise

    def unlock(self) -> None:
        """Let the pages be reclaimed again (munlock); harmless when they were not locked.

        Raises:
            Closed: the region is closed.
        """
        with self._typed("unlock"):
            super().unlock()

    def flush(self, offset: int = 0, length: int | None = None, *, wait: bool = True) -> None:
        """Write the pages that hold a range back to the file (msync). On a private region nothing changes.

        Args:
            offset: where the range starts in the region, in bytes; any.
            length: bytes; None: to the end.
            wait: until they are on the disk; False only begins it.

        Raises:
            Refused: the range is not inside the region.
            Closed: the region is closed.
            OSError: the disk failed; what was written may be lost.
        """
        with self._typed("flush"):
            super().flush(offset, length, wait=wait)

    def advise(  # type: ignore[override]  # the native one takes a number
        self, advice: Advice, offset: int = 0, length: int | None = None
    ) -> None:
        """Tell the kernel how a range will be used (madvise).

        Args:
            advice: what to expect.
            offset: where the range starts in the region, in bytes.
            length: bytes; None: to the end. All pages that hold a part of the range are meant.

        Raises:
            TypeError: ``advice`` is no :class:`Advice`.
            Refused: this kernel, or this kind of region, does not know the advice; or the range is not
                inside.
            NoSpace: the kernel ran out of memory over it.
            Closed: the region is closed.
        """
        check_kind("advice", advice, Advice)
        try:
            with self._typed("advise"):
                super().advise(advice.value, offset, length)
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.EAGAIN):
                raise explain_no_space(error, self.length, f"{advice} of {self._origin.what}") from error
            raise Refused(
                f"{advice} is not possible for {self._origin.what}, or not with this kernel: {error.strerror}"
            ) from error

    def populate(self, offset: int = 0, length: int | None = None, *, write: bool | None = None) -> None:
        """Fault the pages of a range in now, so that touching them later cannot fail or stall.

        Args:
            offset: where the range starts in the region, in bytes.
            length: bytes; None: to the end.
            write: for writing, which allocates holes of a sparse file, and makes copies of a private region's
                pages; or only for reading. None: for writing if the protection allows it.

        Raises:
            NoSpace: a page cannot be had, where touching it would be SIGBUS. Before Linux 5.14 that is not
                found out for a file, which is only read ahead there.
            Refused: the protection does not allow it, the file has become shorter, or the range is not
                inside.
            Closed: the region is closed.
        """
        try:
            with self._typed("populate"):
                super().populate(offset, length, write=write)
        except OSError as error:
            self._raise_populate_error(error)

    def resident(self, offset: int = 0, length: int | None = None) -> list[bool]:
        """Which pages of a range are in memory (mincore): one bool a page.

        A page of a file counts when it is in the page cache, whoever brought it there. The kernel answers
        True throughout for a file that this user could not write to.

        Raises:
            Refused: the range is not inside the region.
            Closed: the region is closed.
        """
        with self._typed("resident"):
            return super().resident(offset, length)

    def fileno(self) -> int:
        """The descriptor under the region, the region's own: to pass on, not to close.

        Raises:
            Refused: the region is anonymous.
            Closed: the region is closed.
        """
        if not self._release.alive:
            raise self._closed_error()
        if self._origin.fd < 0:
            raise Refused("an anonymous region has no descriptor; Region.memfd() makes one that has")
        return self._origin.fd

    # ---- the bytes -----------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, key: int) -> int: ...

    @overload
    def __getitem__(self, key: slice) -> bytes: ...

    def __getitem__(self, key: int | slice) -> int | bytes:
        """One byte as an int, or a copy of a slice."""
        with self._view() as view:
            if not isinstance(key, slice):
                return view[key]
            with view[key] as part:
                return part.tobytes()

    @overload
    def __setitem__(self, key: int, value: int) -> None: ...

    @overload
    def __setitem__(self, key: slice, value: Buffer) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write one byte, or as many as the slice is long."""
        with self._view() as view:
            view[key] = value

    def _view(self) -> memoryview:
        if self.closed:
            raise self._closed_error()
        return memoryview(self)

    # ---- what it is ----------------------------------------------------------------------------------------

    @property
    def address(self) -> int:
        """Where the first byte lies in this process.

        Raises:
            Closed: the region is closed.
        """
        with self._typed("address"):
            return super().address

    @property
    def prot(self) -> Prot:
        """What may be done with the bytes now."""
        return Prot(self.prot_bits)

    @property
    def visibility(self) -> Visibility:
        """Whether others see what is written here."""
        return Visibility.SHARED if self.shared else Visibility.PRIVATE

    @property
    def backing(self) -> Backing:
        """What is under the region."""
        return self._origin.backing

    @property
    def offset(self) -> int:
        """Where in the file the region starts, in bytes."""
        return self._origin.offset

    @property
    def name(self) -> str | None:
        """The name of a named region, or None."""
        return self._origin.name

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.prot!s}, {self.visibility.value}"
        return f"<Region {self._origin.what}: {self.length} bytes, {state}>"

    # ---- errors --------------------------------------------------------------------------------------------

    def _closed_error(self) -> Closed:
        return Closed(f"{self._origin.what} is closed")

    @contextlib.contextmanager
    def _typed(self, call: str) -> Iterator[None]:
        """The native type's ValueError as what it means."""
        try:
            yield
        except ValueError as error:
            if self.closed:
                raise self._closed_error() from None
            raise Refused(f"{call} of {self._origin.what}: {error}") from None

    def _raise_populate_error(self, error: OSError) -> NoReturn:
        what, fd = self._origin.what, self._origin.fd
        if error.errno == errno.EACCES:
            raise Refused(
                f"{what} is {self.prot}, and cannot be populated for more; protect() it first"
            ) from error
        if error.errno == errno.ENOMEM or (error.errno == errno.EFAULT and fd < 0):
            raise explain_no_space(OSError(errno.ENOMEM, ""), self.length, what) from error
        if error.errno != errno.EFAULT:
            raise error
        # A fault here would have been SIGBUS: the file ends before the page, or the page cannot be had.
        size_bytes = os.fstat(fd).st_size
        if size_bytes < self._origin.offset + self.length:
            raise Refused(
                f"{what} has become shorter under the region: {size_bytes} bytes; map it anew"
            ) from error
        raise explain_no_space(OSError(errno.ENOSPC, ""), self.length, what, fd) from error
