"""A ring's memory as Python holds it: made, opened, checked, looked at.

The protocol is native (``_native/ring.c`` opens with it). Here is what surrounds it: which regions a
channel has and how they are made,
what is checked before somebody else's memory is mapped, and the words for what the tables say.

A ring is three descriptors: its control region, its data region, and an eventfd for those who wait in
    ``poll()``. Memory of
``backing="anonymous"`` has none of the first two: it is inherited by ``fork`` or not had at all.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass
from typing import Any, Final, Self

import msgpack  # type: ignore[import-untyped]

from shmbus import _core, limits
from shmbus.errors import Closed, Corrupt, Refused
from shmbus.region import create_file, create_memfd, create_shm
from shmbus.ring_stats import ROLES, describe
from shmbus.settings import Backing, ChannelSettings, Visibility
from shmbus.space import SPACE_ERRORS, check_memory_room, explain_no_space

_READ, _WRITE = 1, 2

_FLAG_END_PRODUCERS, _FLAG_ONE_PRODUCER, _FLAG_DROP_ORPHANS, _FLAG_HOLD = 1, 2, 4, 8
_IDENTITY_BYTES: Final = 16
_HEADER_BYTES: Final = 4096
_SETTINGS_BYTES: Final = 2048


@dataclass(frozen=True, slots=True)
class Participant:
    """One attached endpoint: a slot of the ring's table."""

    slot: int
    pid: int
    start_time: int
    role: str
    group: str | None
    messages: int
    bytes: int
    sleeps: int


class _Opening:
    """Held while this process opens a channel or attaches to one: of two threads only the first does it.

    Made anew in a forked child, where whoever held it does not exist.
    """

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


OPENING: Final = _Opening()


class RingMemory:
    """The regions of one channel in this process.

    Made by ``create`` (the broker, or ``shmbus.channel()``) or ``open`` (everybody who was handed the
    descriptors).
    """

    def __init__(
        self,
        settings: ChannelSettings,
        label: str,
        identity: bytes,
        descriptors: tuple[int, int, int],
        control: _core.Region,
        data: _core.Region | None,
    ) -> None:
        self.settings = settings
        self.label = label
        self.identity = identity
        self.control_fd, self.data_fd, self.event_fd = descriptors
        self._control = control
        self._data = data  # anonymous memory: there is nothing to map again
        self._rings: dict[bool, tuple[_core.Ring, _core.Region, _core.Region]] = {}
        self._closed = False

    @classmethod
    def create(cls, settings: ChannelSettings, label: str) -> RingMemory:
        """Make the regions of a new channel, reserved and sealed, and format its ring.

        Args:
            settings: the channel's settings.
            label: what /proc and messages call it: the channel's name.

        Raises:
            NoSpace: there is no room for the regions, and what limits it.
            Refused: the folder of ``backing="file"`` holds files of that name already.
        """
        reserved, total = _core.Ring.geometry(*_geometry_of(settings))
        blob = msgpack.packb({"label": label, **settings.to_wire()})
        if len(blob) > _SETTINGS_BYTES:
            raise Refused(
                f"the settings of channel {label!r} take {len(blob)} bytes, and its header has room for "
                f"{_SETTINGS_BYTES}: shorten directory= or name fewer groups",
                setting="directory",
            )
        identity = os.urandom(_IDENTITY_BYTES)
        with contextlib.ExitStack() as undo:
            event_fd = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, event_fd)
            shared = settings.visibility is Visibility.SHARED
            data: _core.Region | None = None
            if settings.backing is Backing.ANONYMOUS:
                control_fd = data_fd = -1
                control = _map(label, -1, total, _READ | _WRITE, shared)
                undo.callback(control.close)
                data = _map(label, -1, settings.capacity_bytes, _READ | _WRITE, shared, mirrored=True)
                undo.callback(data.close)
                _populate(label, data, settings.capacity_bytes)  # reserved before use, like other backings
                _populate(label, control, reserved)
            else:
                control_fd = _make(settings, label, "control", total, reserved, undo)
                data_fd = _make(settings, label, "data", settings.capacity_bytes, None, undo)
                control = _map(label, control_fd, total, _READ | _WRITE, True)  # formatted for all to see
                undo.callback(control.close)
            _core.Ring.format(
                control,
                *_geometry_of(settings),
                _flags_of(settings),
                limits.MAX_DELIVERIES,
                identity,
                settings.groups,
                blob,
            )
            memory = cls(settings, label, identity, (control_fd, data_fd, event_fd), control, data)
            undo.pop_all()
            return memory

    @classmethod
    def open(
        cls,
        control_fd: int,
        data_fd: int,
        event_fd: int,
        settings: ChannelSettings,
        *,
        writable: bool = True,
        label: str = "",
    ) -> Self:
        """Map the regions behind descriptors that somebody handed over; they are this object's from now on.

        Args:
            control_fd: the control region.
            data_fd: the data region.
            event_fd: the eventfd of the channel.
            settings: what the broker said the channel's settings are.
            writable: not needed: data is mapped for reading until a producer attaches here.
            label: the channel's name; default: as it was made.

        Raises:
            Corrupt: the regions do not hold a ring, or not one of these settings.
            NoSpace: the address space or the memory of this process does not suffice.
        """
        del writable  # data is mapped for reading until a producer attaches
        try:
            identity, found, made_label, total = _examine(control_fd, data_fd)
            if found.differences(settings):
                raise Corrupt(
                    f"the regions of channel {label or made_label!r} were made with other settings: "
                    f"{found.describe_differences(settings)}"
                )
            shared = settings.visibility is Visibility.SHARED
            control = _map(label or made_label, control_fd, total, _READ | _WRITE, shared)
        except BaseException:
            for fd in (control_fd, data_fd, event_fd):
                os.close(fd)
            raise
        return cls(settings, label or made_label, identity, (control_fd, data_fd, event_fd), control, None)

    def ring(self, *, writable: bool) -> _core.Ring:
        """The native ring over these regions; its data is mapped for writing only when asked for."""
        if self._closed:
            raise Closed(f"channel {self.label!r}: this process has closed its mapping")
        known = self._rings.get(writable)
        if known is not None:
            return known[0]
        with OPENING:
            known = self._rings.get(writable)
            if known is not None:
                return known[0]
            data = self._data
            if data is None:
                shared = self.settings.visibility is Visibility.SHARED
                prot = _READ | _WRITE if writable else _READ
                data = _map(
                    self.label, self.data_fd, self.settings.capacity_bytes, prot, shared, mirrored=True
                )
            control = self._control
            if self.settings.visibility is Visibility.PRIVATE and self.control_fd >= 0:
                # Each end over pages of its own, also two ends of one process.
                control = _map(self.label, self.control_fd, len(control), _READ | _WRITE, False)
            ring = _core.Ring(control, data, self.control_fd, self.event_fd, f"channel {self.label!r}")
            known = self._rings[writable] = (ring, data, control)
        return known[0]

    @property
    def _ring(self) -> _core.Ring:
        # Over private mappings each end has pages of its own: tell what this process has sent, if it has.
        private = self.settings.visibility is Visibility.PRIVATE
        return self.ring(writable=private and True in self._rings)

    @property
    def closed(self) -> bool:
        """Whether this process has unmapped it."""
        return self._closed

    def reap(self) -> int:
        """Settle what participants left that are proved dead.

        Returns:
            How many slots were freed.
        """
        return self._ring.reap()

    def close_channel(self) -> None:
        """Nothing more is sent; consumers drain what was, and end."""
        self._ring.close_channel()

    def is_closed(self) -> bool:
        """Whether the channel was closed or poisoned by anybody."""
        return self._ring.counters()[2] != 0

    def poison(self, reason: int) -> None:
        """Give the channel up as broken: every participant gets ``Corrupt``."""
        self._ring.poison(reason)

    def drop_group(self, name: str) -> None:
        """Take a group away; its members get ``Closed``, and its records hold producers back no longer.

        Raises:
            Refused: there is no such group.
        """
        self._ring.drop_group(name)

    def register(self, count: int = 1) -> list[int]:
        """Count as ``count`` producers that are still to come, so that the channel does not end before they
        attach.

        Returns:
            Tickets for ``unregister``. They end with this process.
        """
        return [self._ring.register() for _ in range(count)]

    def unregister(self, tickets: list[int]) -> None:
        """Give tickets back."""
        for ticket in tickets:
            self._ring.unregister(ticket)

    def participants(self) -> list[Participant]:
        """Who is attached."""
        names = {row[0]: row[2] for row in self._ring.groups() if row[1] == 3}
        return [
            Participant(slot, pid, start, ROLES.get(role, "?"), names.get(group), messages, size, sleeps)
            for slot, pid, start, role, group, messages, size, sleeps, _ in self._ring.participants()
        ]

    def stats(self) -> dict[str, Any]:
        """What the channel's tables say right now, and who holds producers back.

        Returns:
            Plain numbers, text and lists. ``used_bytes`` of ``capacity_bytes`` are held back by the
            slowest; ``blockers`` names the pids that others wait for: producers that have claimed the
            record at a group's cursor and not committed it, and consumers whose lease is the oldest.
        """
        return describe(self._ring, self.label, self.settings.capacity_bytes)

    def close(self) -> None:
        """Unmap the regions and close the descriptors. Repeating it is harmless.

        Raises:
            BufferError: endpoints of this process are still attached.
        """
        if self._closed:
            return
        for ring, data, control in list(self._rings.values()):
            ring.release()
            if data is not self._data:
                data.close()
            if control is not self._control:
                control.close()
        self._rings.clear()
        if self._data is not None:
            self._data.close()
        self._control.close()
        self._closed = True
        for fd in (self.control_fd, self.data_fd, self.event_fd):
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(BufferError, AttributeError):
            self.close()


def check_offer(control_fd: int, data_fd: int) -> tuple[bytes, ChannelSettings, str]:
    """What a client that offers a channel back says it is, read without mapping anything.

    Returns:
        The channel's identity, settings, and the name it was made with.

    Raises:
        Corrupt: the descriptors are no regions of a ring.
        Refused: they are no regular files or memfds, or memfds that could be shortened under a mapping.
    """
    identity, settings, label, _ = _examine(control_fd, data_fd)
    return identity, settings, label


def _examine(control_fd: int, data_fd: int) -> tuple[bytes, ChannelSettings, str, int]:
    sizes = []
    for fd, what in ((control_fd, "control"), (data_fd, "data")):
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"the {what} descriptor of a channel is no regular file or memfd")
        sizes.append(status.st_size)
    header = os.pread(control_fd, _HEADER_BYTES, 0)
    identity, blob, capacity, _, total = _core.Ring.check(header, sizes[0])
    if sizes[1] != capacity:
        raise Corrupt(f"the data region is {sizes[1]} bytes long, and the ring's capacity {capacity}")
    if sizes[0] < total:
        raise Corrupt(f"the control region is {sizes[0]} bytes long, and its tables and parking {total}")
    try:
        wire = msgpack.unpackb(blob)
        label = wire.pop("label")
        settings = ChannelSettings.from_wire(wire)
    except Refused as error:
        raise Corrupt(f"the settings in the control region are not possible: {error}") from error
    except Exception as error:
        raise Corrupt("the settings in the control region cannot be read") from error
    if not isinstance(label, str) or settings.capacity_bytes != capacity:
        raise Corrupt("the settings in the control region contradict its header")
    return identity, settings, label, total


def _map(
    label: str, fd: int, length: int, prot: int, shared: bool, *, mirrored: bool = False
) -> _core.Region:
    """A mapping of a channel's region; what hinders it is a typed error."""
    try:
        return _core.Region.map(fd, length, prot, shared, 0, mirrored)
    except OSError as error:
        if error.errno in SPACE_ERRORS:
            needed = 2 * length if mirrored else length
            raise explain_no_space(error, needed, f"the mapping of channel {label!r}") from error
        raise


def _populate(label: str, region: _core.Region, length: int) -> None:
    check_memory_room(length, f"the memory of channel {label!r}")
    try:
        region.populate(0, length, write=True)
    except OSError as error:
        raise explain_no_space(error, length, f"the memory of channel {label!r}") from error


def _geometry_of(settings: ChannelSettings) -> tuple[int, int, int, int, int]:
    return (
        settings.capacity_bytes,
        limits.MAX_PARTICIPANTS,
        limits.MAX_LEASES,
        limits.MAX_GROUPS,
        limits.PARKING_BYTES,
    )


def _flags_of(settings: ChannelSettings) -> int:
    return (
        _FLAG_END_PRODUCERS * (settings.end == "producers")
        | _FLAG_ONE_PRODUCER * (settings.producers == "one")
        | _FLAG_DROP_ORPHANS * (settings.on_consumer_death == "drop")
        | _FLAG_HOLD * settings.hold
    )


def _make(
    settings: ChannelSettings,
    label: str,
    part: str,
    length: int,
    reserved: int | None,
    undo: contextlib.ExitStack,
) -> int:
    """One region's descriptor; undone with ``undo``."""
    if settings.backing is Backing.FILE:
        path = os.path.join(settings.directory or "", f"{label}.{part}")
        fd = create_file(path, length, reserved)
        undo.callback(os.unlink, path)
    elif settings.backing is Backing.SHM:
        fd = create_shm(f"shmbus-{label}-{part}", length, reserved)
    else:
        fd = create_memfd(f"shmbus:{label}:{part}", length, reserved)
    undo.callback(os.close, fd)
    return fd
