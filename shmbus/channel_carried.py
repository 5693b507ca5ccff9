"""The source of a channel without a broker: its descriptors go where the channel goes."""

from __future__ import annotations

from typing import Any

from shmbus.errors import Refused
from shmbus.ring import RingMemory
from shmbus.settings import ChannelSettings


class CarriedSource:
    """Hands its descriptors to children that are being started, and its mapping to those that are forked."""

    def __init__(self, memory: RingMemory) -> None:
        self.name = memory.label
        self._memory = memory

    def open(self) -> RingMemory:
        """The memory that this process made, inherited or was handed."""
        return self._memory

    def tend(self) -> None:
        """Nobody to tend: participants reap for each other inside their waits."""

    def describe(self) -> str:
        """For messages."""
        return f"{self.name!r} without a broker"

    def __getstate__(self) -> dict[str, Any]:
        import multiprocessing.context
        from multiprocessing import reduction

        memory = self._memory
        if multiprocessing.context.get_spawning_popen() is None:
            raise Refused(
                f"channel {self.name!r} has no broker: it can be passed to a child process when that is "
                "started (as an argument of multiprocessing.Process), not pickled on its own; use "
                "shmbus.Bus() or connect() to reach processes that run already"
            )
        if memory.control_fd < 0:
            raise Refused(
                f"channel {self.name!r} is of backing='anonymous': only a forked child inherits its memory"
            )
        duplicates = [reduction.DupFd(fd) for fd in (memory.control_fd, memory.data_fd, memory.event_fd)]
        return {"name": self.name, "descriptors": duplicates, "settings": memory.settings.to_wire()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        control_fd, data_fd, event_fd = (duplicate.detach() for duplicate in state["descriptors"])
        self.name = state["name"]
        self._memory = RingMemory.open(
            control_fd, data_fd, event_fd, ChannelSettings.from_wire(state["settings"]), label=self.name
        )
