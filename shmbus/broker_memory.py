"""What the broker asks of a channel's memory, so that it can be tested without any.

The broker needs little of the ring: to make it, to open it, to have it reaped, and to hear about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shmbus.settings import ChannelSettings

__all__ = ["Memory", "MemoryFactory", "RingFactory"]


class Memory(Protocol):
    """What the broker needs of ``RingMemory``."""

    @property
    def control_fd(self) -> int:
        """The descriptor of the control region, -1 for anonymous memory."""

    @property
    def data_fd(self) -> int:
        """The descriptor of the data region, -1 for anonymous memory."""

    @property
    def event_fd(self) -> int:
        """The descriptor that consumers with an event loop wait for."""

    @property
    def identity(self) -> bytes:
        """Sixteen bytes that no other channel has."""

    @property
    def settings(self) -> ChannelSettings:
        """What it was made with."""

    def reap(self) -> int:
        """Cleans up after every participant that is proved dead; how many slots were freed."""

    def close_channel(self) -> None:
        """Nothing more is sent; consumers drain it and end."""

    def drop_group(self, name: str) -> None:
        """Takes a group away."""

    def participants(self) -> Iterable[object]:
        """Those who are attached; each has a `pid`."""

    def stats(self) -> object:
        """Its counters."""

    def close(self) -> None:
        """Unmaps it and closes its descriptors."""


class MemoryFactory(Protocol):
    """Makes and opens the memory of channels: the ring, or a test's stand-in."""

    def create(self, settings: ChannelSettings, label: str) -> Memory:
        """New memory; may take a while."""

    def open(self, control_fd: int, data_fd: int, event_fd: int, settings: ChannelSettings) -> Memory:
        """Memory from descriptors, which belong to it from now on, also when this fails."""

    def check_offer(self, control_fd: int, data_fd: int) -> tuple[bytes, ChannelSettings, str]:
        """Identity, settings and name by the header, without mapping anything."""


class RingFactory:
    """The real thing. The ring is imported when the first memory is asked for."""

    def create(self, settings: ChannelSettings, label: str) -> Memory:
        """New memory; may take a while."""
        from shmbus.ring import RingMemory

        return RingMemory.create(settings, label)

    def open(self, control_fd: int, data_fd: int, event_fd: int, settings: ChannelSettings) -> Memory:
        """Memory from descriptors, which belong to it from now on, also when this fails."""
        from shmbus.ring import RingMemory

        return RingMemory.open(control_fd, data_fd, event_fd, settings)

    def check_offer(self, control_fd: int, data_fd: int) -> tuple[bytes, ChannelSettings, str]:
        """Identity, settings and name by the header, without mapping anything."""
        from shmbus.ring import check_offer

        return check_offer(control_fd, data_fd)
