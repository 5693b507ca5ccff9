"""What is under a region: making, opening and naming descriptors.

A page of a mapping that cannot be had when it is first touched is SIGBUS (a full file system) or the kernel's
out-of-memory killer (a full machine). So every descriptor that is made here has its size for good, and space
that is allocated already (``fallocate``); what does not fit is :class:`~shmbus.errors.NoSpace` here and now.

Descriptors are close-on-exec and, where they are made here, of mode 0600. Whoever gets one closes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from typing import Final, Protocol

import posix_ipc  # type: ignore[import-not-found]  # it ships no types

from shmbus.errors import Refused
from shmbus.limits import PAGE_BYTES
from shmbus.space import SPACE_ERRORS, check_file_system_room, check_memory_room, explain_no_space

__all__ = [
    "check_length",
    "create_file",
    "create_memfd",
    "create_named",
    "create_shm",
    "open_file",
    "open_named",
    "unlink_named",
    "usable_length",
]

LABEL_BYTES: Final = 249
"""The longest label of a memfd: the kernel's NAME_MAX less its own prefix (man 2 memfd_create)."""

NAME_BYTES: Final = 254
"""The longest name of a named region after its slash (man 7 shm_overview: NAME_MAX with a zero byte)."""

# Allocation is interrupted by signals and then starts anew, so a profiler's timer could keep one large
# allocation from ever ending. A step this long takes about a millisecond.
_RESERVE_STEP_BYTES: Final = 4 << 20

_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3; not in os before Python 3.13
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class HasFileno(Protocol):
    """An open file: anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


# ---- making ------------------------------------------------------------------------------------------------


def create_memfd(label: str, length_bytes: int, reserved_bytes: int | None = None) -> int:
    """A sealed memfd: memory that has no name, and is gone with its last descriptor and mapping.

    Args:
        label: what ``/proc/PID/maps`` shows for it; at most 249 bytes, and need not be unique.
        length_bytes: its size. It can neither shrink nor grow later.
        reserved_bytes: how much of it, from the start, is allocated now. None: all of it.

    Returns:
        The descriptor.

    Raises:
        NoSpace: the machine, or the control group, has not so much memory.
        Refused: a length or the label is not possible.
    """
    what = f"memfd {_check_label(label)!r}"
    reserved_bytes = _check_lengths(length_bytes, reserved_bytes)
    check_memory_room(reserved_bytes, what)
    fd = _open_memfd(label)
    try:
        os.fchmod(fd, 0o600)
        _allocate(fd, length_bytes, reserved_bytes, what)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_shm(label: str, length_bytes: int, reserved_bytes: int | None = None) -> int:
    """POSIX shared memory whose name is taken away as soon as it is open, before anything else is done.

    No entry stays in ``/dev/shm``, whoever is killed later. Between ``shm_open`` and ``shm_unlink``, two
    neighbouring system calls, a kill -9 would leave an empty file behind; a memfd has not even that window.

    Args:
        label: becomes part of the short-lived name, which ``/proc/PID/maps`` shows as deleted.
        length_bytes: its size.
        reserved_bytes: how much of it, from the start, is allocated now. None: all of it.

    Returns:
        The descriptor.

    Raises:
        NoSpace: ``/dev/shm``, the machine or the control group has not so much room.
        Refused: a length or the label is not possible.
    """
    what = f"POSIX shared memory {_check_label(label)!r}"
    reserved_bytes = _check_lengths(length_bytes, reserved_bytes)
    check_memory_room(reserved_bytes, what)
    fd = _open_unlinked_shm(label)
    try:
        os.fchmod(fd, 0o600)
        check_file_system_room(fd, reserved_bytes, what)
        _allocate(fd, length_bytes, reserved_bytes, what)
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_file(path: str, length_bytes: int, reserved_bytes: int | None = None) -> int:
    """A new file of the user's, which stays until somebody removes it.

    Args:
        path: where; nothing may be there yet.
        length_bytes: its size.
        reserved_bytes: how much of it, from the start, is allocated now. None: all of it.

    Returns:
        The descriptor, open for reading and writing.

    Raises:
        NoSpace: the file system, the quota or RLIMIT_FSIZE does not allow so much; no file is left.
        Refused: something exists at the path, or a length is not possible.
        OSError: the folder is missing, or may not be written to.
    """
    what = f"file {path!r}"
    reserved_bytes = _check_lengths(length_bytes, reserved_bytes)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused(f"{path!r} exists already; remove it, or name another path") from None
    except OSError as error:
        if error.errno in SPACE_ERRORS:
            raise explain_no_space(error, reserved_bytes, what) from error
        raise
    try:
        _allocate(fd, length_bytes, reserved_bytes, what)
    except BaseException:
        os.unlink(path)
        os.close(fd)
        raise
    return fd


def create_named(name: str, length_bytes: int) -> int:
    """New POSIX shared memory that keeps its name until it is unlinked, all of it reserved.

    Raises:
        NoSpace: ``/dev/shm``, the machine or the control group has not so much room; no name is left.
        Refused: the name is taken, or it or the length is not possible.
    """
    _check_name(name)
    what = f"named region {name!r}"
    check_memory_room(check_length(length_bytes), what)
    try:
        fd = int(posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600).fd)
    except posix_ipc.ExistentialError:
        raise Refused(
            f"a region named {name!r} exists already; open it with create=False, or remove what a killed "
            f"process left behind with Region.named({name!r}).unlink()"
        ) from None
    try:
        os.fchmod(fd, 0o600)
        check_file_system_room(fd, length_bytes, what)
        _allocate(fd, length_bytes, length_bytes, what)
    except BaseException:
        posix_ipc.unlink_shared_memory(name)
        os.close(fd)
        raise
    return fd


# ---- opening -----------------------------------------------------------------------------------------------


def open_named(name: str, *, writable: bool) -> int:
    """Open POSIX shared memory by its name.

    Raises:
        Refused: the name is not possible, nobody has created it, or it may not be opened so.
    """
    _check_name(name)
    try:
        return int(posix_ipc.SharedMemory(name, read_only=not writable).fd)
    except posix_ipc.ExistentialError:
        raise Refused(f"no region is named {name!r}; create=True makes one") from None
    except posix_ipc.PermissionsError:
        mode = "writing" if writable else "reading"
        raise Refused(f"the region named {name!r} may not be opened for {mode} by this user") from None


def unlink_named(name: str, fd: int) -> None:
    """Take the name away, if it still means the memory of this descriptor. Repeating it is harmless."""
    try:
        found = int(posix_ipc.SharedMemory(name, read_only=True).fd)
    except (posix_ipc.ExistentialError, posix_ipc.PermissionsError):
        return  # gone already; or taken anew by another user, as one's own can be read
    try:
        if os.path.samestat(os.fstat(found), os.fstat(fd)):
            posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        pass  # somebody else unlinked it between the two looks
    finally:
        os.close(found)


def open_file(file: str | os.PathLike[str] | HasFileno | int, *, writable: bool) -> tuple[int, str]:
    """A descriptor of our own for a path or an open file, and what to call it in errors.

    Raises:
        TypeError: it is neither.
        OSError: the path cannot be opened.
        ValueError: the file is closed.
    """
    if isinstance(file, (str, os.PathLike)):
        # O_NONBLOCK: the other end of a pipe is not waited for, only to be refused.
        mode = os.O_RDWR if writable else os.O_RDONLY
        path = os.fspath(file)
        return os.open(path, mode | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK), f"file {path!r}"
    if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, "fileno")):
        raise TypeError(f"file is a path or an open file, not {type(file).__name__}")
    if isinstance(file, int):
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3), f"descriptor {file}"
    flush = getattr(file, "flush", None)
    if callable(flush):
        flush()  # what Python still buffers belongs to the file that is mapped
    fd = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    name = getattr(file, "name", fd)
    return fd, f"file {name!r}"


def usable_length(fd: int, what: str, offset: int, length: int | None) -> int:
    """How many bytes to map from an offset on.

    Args:
        fd: the file.
        what: what it is, in the errors.
        offset: where the mapping starts, in bytes.
        length: what was asked for, or None: all that follows.

    Raises:
        Refused: the file is empty, of a kind that has no bytes to map, or ends before that; or the offset is
            not a multiple of the page.
    """
    if offset < 0:
        raise Refused(f"offset={offset} is not possible: it is at least 0")
    if offset % PAGE_BYTES:
        below = offset - offset % PAGE_BYTES
        raise Refused(
            f"offset={offset} is not a multiple of the page ({PAGE_BYTES} bytes); "
            f"the nearest: {below} or {below + PAGE_BYTES}"
        )
    size = _size_of(fd, what)
    if size is None:  # a device, which knows itself what it can map
        if length is None:
            raise Refused(f"{what} is a device without a size; say how much with length=")
        return check_length(length)
    if length is None:
        if offset >= size:
            raise Refused(f"nothing of {what} lies at offset={offset}: it ends at {size}")
        return size - offset
    if offset + check_length(length) > size:
        raise Refused(
            f"{what} ends at {size}, before offset={offset} + length={length}: what lies beyond could not be "
            "touched (SIGBUS); make the file longer first (truncate), or map less"
        )
    return length


def _size_of(fd: int, what: str) -> int | None:
    status = os.fstat(fd)
    if stat.S_ISCHR(status.st_mode):
        return None
    if stat.S_ISBLK(status.st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{what} is no regular file, and has no bytes to map")
    if status.st_size == 0:
        if status.st_dev in _devices_of("/proc", "/sys"):
            raise Refused(
                f"{what} is made up by the kernel as it is read, and cannot be mapped; read it instead"
            )
        raise Refused(f"{what} is empty, and there is nothing to map; give it a length first (truncate)")
    return status.st_size


def _devices_of(*paths: str) -> set[int]:
    return {os.stat(path).st_dev for path in paths if os.path.isdir(path)}


# ---- helpers -----------------------------------------------------------------------------------------------


def check_length(length_bytes: object, name: str = "length") -> int:
    """The length, if a region can have it.

    Raises:
        TypeError: it is no int.
        Refused: it is not positive, or beyond what the kernel can address.
    """
    if not isinstance(length_bytes, int) or isinstance(length_bytes, bool):
        raise TypeError(f"{name} is an int of bytes, not {type(length_bytes).__name__}")
    if not 0 < length_bytes < 1 << 62:
        raise Refused(f"{name}={length_bytes} is not possible: it is at least 1 byte, and below 2**62")
    return length_bytes


def _check_lengths(length_bytes: int, reserved_bytes: int | None) -> int:
    check_length(length_bytes, "length_bytes")
    if reserved_bytes is None:
        return length_bytes
    if not 0 <= reserved_bytes <= length_bytes:
        raise Refused(
            f"reserved_bytes={reserved_bytes} is not possible: it is from 0 to length_bytes={length_bytes}"
        )
    return reserved_bytes


def _check_label(label: str) -> str:
    if not isinstance(label, str):
        raise TypeError(f"label is a str, not {type(label).__name__}")
    if "\0" in label:
        raise Refused(f"label={label!r} cannot hold a zero byte")
    size = len(os.fsencode(label))
    if size > LABEL_BYTES:
        raise Refused(f"label has {size} bytes; the limit is {LABEL_BYTES} (LABEL_BYTES)")
    return label


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name is a str, not {type(name).__name__}")
    rest = name[1:]
    if not name.startswith("/") or "/" in rest or "\0" in rest or rest in ("", ".", ".."):
        raise Refused(f'name={name!r} is not possible: a slash, then a name without one, such as "/frames"')
    size = len(os.fsencode(rest))
    if size > NAME_BYTES:
        raise Refused(f"name has {size} bytes after its slash; the limit is {NAME_BYTES} (NAME_BYTES)")


def _open_memfd(label: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(label, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create(label, flags)  # a kernel that does not know the flag


def _open_unlinked_shm(label: str) -> int:
    readable = re.sub(r"[^A-Za-z0-9._-]", "-", label)[:64]
    while True:
        name = f"/shmbus-{readable}-{os.urandom(8).hex()}"
        try:
            memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
        except posix_ipc.ExistentialError:
            continue
        posix_ipc.unlink_shared_memory(name)
        return int(memory.fd)


def _allocate(fd: int, length_bytes: int, reserved_bytes: int, what: str) -> None:
    try:
        os.ftruncate(fd, length_bytes)
        for start in range(0, reserved_bytes, _RESERVE_STEP_BYTES):
            os.posix_fallocate(fd, start, min(_RESERVE_STEP_BYTES, reserved_bytes - start))
    except OSError as error:
        if error.errno in SPACE_ERRORS:
            raise explain_no_space(error, reserved_bytes, what, fd) from error
        raise
