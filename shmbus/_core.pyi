"""The native core: what Python cannot do correctly or fast. Use the faces (``region.py``, …), not this."""

from collections.abc import Callable, Iterable
from typing import Any, Self, final

# ---- Region (py_region.c) ----------------------------------------------------------------------------------

class Region:
    """A mapped piece of memory, read and written through its buffer.

    Numbers are those of mmap(2), errors are ``OSError`` with the errno of the call, a closed region is
    ``ValueError``. Every system call runs without the GIL.
    """

    @classmethod
    def map(
        cls,
        fd: int,
        length: int,
        prot: int,
        shared: bool,
        offset: int = 0,
        mirrored: bool = False,
    ) -> Self:
        """Map ``length`` bytes of ``fd`` (-1: anonymous memory) from ``offset`` on.

        Args:
            fd: only read here: the mapping does not need it any more afterwards.
            length: bytes; with ``mirrored`` a multiple of the page.
            prot: PROT_ bits.
            shared: MAP_SHARED or MAP_PRIVATE.
            offset: bytes, a multiple of the page.
            mirrored: map the same bytes twice, back to back; the buffer is then twice ``length`` long. With
                ``shared=False`` the two are independent private views.
        """

    def close(self) -> None:
        """Unmap. Repeating it is harmless.

        Raises:
            BufferError: views of the region exist, or another thread is inside a call on it.
        """

    def protect(self, prot: int, /) -> None:
        """Change the protection (mprotect).

        Raises:
            BufferError: it would take a right away while views exist or another thread is inside a call.
        """

    def lock(self) -> None:
        """Keep every page in memory (mlock)."""

    def unlock(self) -> None:
        """Undo ``lock()`` (munlock)."""

    def flush(self, offset: int = 0, length: int | None = None, *, wait: bool = True) -> None:
        """Write the pages of a byte range back to the file (msync)."""

    def advise(self, advice: int, offset: int = 0, length: int | None = None) -> None:
        """Tell the kernel how a byte range will be used (madvise); dangerous advice is EINVAL."""

    def populate(self, offset: int = 0, length: int | None = None, *, write: bool | None = None) -> None:
        """Fault the pages of a byte range in; ``write=None``: for writing where the protection allows it."""

    def resident(self, offset: int = 0, length: int | None = None) -> list[bool]:
        """Which pages of a byte range are in memory (mincore), one bool a page."""

    @property
    def address(self) -> int:
        """Where the first byte lies in this process."""

    @property
    def length(self) -> int:
        """Bytes of the backing that are mapped; ``len(region)`` is twice that when mirrored."""

    @property
    def prot_bits(self) -> int:
        """The protection, as PROT_ bits."""

    @property
    def shared(self) -> bool:
        """Whether others see what is written here."""

    @property
    def mirrored(self) -> bool:
        """Whether the bytes are mapped twice, back to back."""

    @property
    def exports(self) -> int:
        """How many buffers of the region are in use."""

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has unmapped the region."""

    def __len__(self) -> int:
        """The length of the buffer in bytes; 0 once closed."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

# ---- Ring (py_ring.c) --------------------------------------------------------------------------------------

@final
class Ring:
    """One process's view of a channel's two regions. ``RingMemory`` is its face."""

    def __new__(cls, control: Region, data: Region, control_fd: int, event_fd: int, label: str) -> Self: ...
    @staticmethod
    def geometry(
        capacity_bytes: int, participants: int, leases: int, groups: int, parking_limit_bytes: int, /
    ) -> tuple[int, int]:
        """Bytes of the control region: what is reserved, and what is mapped (parking lies beyond)."""

    @staticmethod
    def format(
        control: Region,
        capacity_bytes: int,
        participants: int,
        leases: int,
        groups: int,
        parking_limit_bytes: int,
        flags: int,
        max_deliveries: int,
        identity: bytes,
        group_names: tuple[str, ...],
        settings: bytes,
        /,
    ) -> None:
        """Fill a new control region."""

    @staticmethod
    def check(header: bytes, file_bytes: int, /) -> tuple[bytes, bytes, int, int, int]:
        """Identity, settings, capacity, reserved and mapped control bytes of a header read by ``pread``."""

    def release(self) -> None:
        """Give the regions back; BufferError while endpoints are attached."""

    def close_channel(self) -> None: ...
    def poison(self, reason: int, /) -> None: ...
    def reap(self) -> int: ...
    def register(self) -> int: ...
    def unregister(self, slot: int, /) -> None: ...
    def drop_group(self, name: str, /) -> None: ...
    def participants(self) -> list[tuple[int, int, int, int, int, int, int, int, int]]:
        """Slot, pid, start time, role, group or -1, messages, bytes, sleeps, spins that paid."""

    def groups(self) -> list[tuple[int, int, str, int, int, int, int]]:
        """Index, state, name, cursor, redelivered, dropped, slot whose claim is at the cursor or -1."""

    def leases(self) -> list[tuple[int, int, int, int, int, int, int, int]]:
        """Index, owner's state, slot, group, deliveries, state, start, end."""

    def counters(self) -> tuple[int, int, int, int, int, int]:
        """Tail, floor, status, reaped, aborted, poison reason."""

def set_wait_slice(seconds: float, /) -> float:
    """How long a wait sleeps before it looks around; negative: for ever. For tests. Returns the last."""

def own_start_time() -> int:
    """When this process started, in clock ticks since boot."""

# ---- Producer, Loan (py_producer.c) ------------------------------------------------------------------------

@final
class Producer:
    """The native sending end; ``channel.Producer`` documents the methods."""

    def __new__(
        cls,
        ring: Ring,
        codec: int,
        encode: Callable[[Any], object],
        tend: Callable[[], None] | None,
        spin_ns: int,
    ) -> Self: ...
    def send(self, message: object, /, timeout: float | None = None) -> None: ...
    def try_send(self, message: object, /) -> bool: ...
    def send_bytes(self, data: object, /, timeout: float | None = None) -> None: ...
    def send_many(self, messages: Iterable[object], /, timeout: float | None = None) -> int: ...
    def loan(self, nbytes: int, /, timeout: float | None = None) -> Loan: ...
    def close(self) -> None: ...
    def stats(self) -> tuple[int, int, int, int, int]: ...
    @property
    def closed(self) -> bool: ...

@final
class Loan:
    """Room in the ring; a writable buffer until committed or aborted."""

    def commit(self, length: int | None = None, /) -> None: ...
    def abort(self) -> None: ...
    @property
    def open(self) -> bool: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

# ---- Consumer, Lease (py_consumer.c) -----------------------------------------------------------------------

@final
class Consumer:
    """The native receiving end; ``channel.Consumer`` documents the methods."""

    def __new__(
        cls,
        ring: Ring,
        codec: int,
        decode: Callable[[bytes], object],
        tend: Callable[[], None] | None,
        spin_ns: int,
        group: str | None,
        lossy: bool,
        ack_done: bool,
    ) -> Self: ...
    def recv(self, timeout: float | None = None) -> Any: ...
    def try_recv(self) -> Any: ...
    def recv_bytes(self, timeout: float | None = None) -> bytes: ...
    def recv_many(self, most: int, /, timeout: float | None = None) -> list[Any]: ...
    def lease(self, timeout: float | None = None) -> Lease: ...
    def fileno(self) -> int: ...
    def close(self, redeliver: bool, /) -> None: ...
    def stats(self) -> tuple[int, int, int, int, int, int, int, int, int]: ...
    @property
    def closed(self) -> bool: ...
    @property
    def deliveries(self) -> int: ...
    @property
    def lost(self) -> int: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...

@final
class Lease:
    """A held record; a read-only buffer until released."""

    def release(self) -> None: ...
    @property
    def open(self) -> bool: ...
    @property
    def codec(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
