"""Records where they lie: loans to write into, leases to read from."""

from __future__ import annotations

from types import TracebackType

from shmbus import _core


class Loan:
    """Room in the ring, to be written and committed. ``with`` commits, or aborts if the body raises."""

    def __init__(self, core: _core.Loan) -> None:
        self._core = core
        self._view: memoryview | None = None

    @property
    def buffer(self) -> memoryview:
        """The room, writable. ``numpy.frombuffer`` takes it."""
        if self._view is None:
            self._view = memoryview(self._core)
        return self._view

    def commit(self, nbytes: int | None = None) -> None:
        """Send what was written.

        Args:
            nbytes: how much of the room, from its start; default: all.

        Raises:
            BufferError: arrays made from the buffer still exist, and could write into a record that was sent.
        """
        self._release()
        self._core.commit(nbytes)

    def abort(self) -> None:
        """Give the room back; nothing is sent."""
        self._release()
        self._core.abort()

    def _release(self) -> None:
        if self._view is not None:
            self._view.release()
            self._view = None

    def __enter__(self) -> memoryview:
        return self.buffer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._core.open:
            return
        if kind is None:
            self.commit()
        else:
            self.abort()


class Lease:
    """A record in the ring, held for reading."""

    def __init__(self, core: _core.Lease) -> None:
        self._core = core
        self._view: memoryview | None = None

    @property
    def view(self) -> memoryview:
        """The record's bytes, read-only.

        Arrays made from it keep the record held for as long as they live.
        """
        if self._view is None:
            self._view = memoryview(self._core)
        return self._view

    def release(self) -> None:
        """Let producers use the space again. Repeating it is harmless.

        Raises:
            BufferError: arrays made from the view still exist.
        """
        if self._view is not None:
            self._view.release()
            self._view = None
        self._core.release()

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
