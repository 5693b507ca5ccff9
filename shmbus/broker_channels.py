"""The channels of a bus: made, opened, given back, listed, removed.

Theory of operation
===================

A name is in one of four conditions::

    free ──open, make──▶ in making ──▶ served ──remove──▶ free
    listed ──offer of the same identity──▶ in making ──▶ served
    listed ──every participant proved dead, or remove──▶ free

*In making*: space is being reserved, in a thread, since that may take a while. Whoever asks for the name
meanwhile waits until it is served (or free again, if it could not be made).

*Listed*: the broker before this one served it, and some participant has not been proved dead. It cannot be
made anew: the participants still talk through it and will give it back at their next slow path. Whoever asks
for it waits for that, a little while (``LISTED_SECONDS``); then the refusal names the processes that keep the
name. A listed participant is watched by pidfd; nothing polls.

The broker maps every channel that it serves. That keeps it alive between participants, and lets the broker
reap; records never pass through here. What is known of who takes part (``holders``) comes from open and
offer, and from the slots in the channel itself for those who got the memory in another way; it is for the
list and for people. The proof of death is the ring's own business.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from shmbus import control, limits
from shmbus.broker_hold import ChannelList, Listed
from shmbus.broker_memory import Memory, MemoryFactory
from shmbus.broker_offers import check_descriptors
from shmbus.broker_processes import Process
from shmbus.control_io import close_all, open_process, start_ticks
from shmbus.errors import NoSpace, Refused, ShmbusError
from shmbus.settings import Backing, ChannelSettings, check_channel_name, check_group_name

__all__ = ["Channels", "Served"]

LISTED_SECONDS: Final = 2.0
"""How long an open waits for a channel of the last broker to be given back: waits re-check every 500 ms."""


@dataclass(eq=False, slots=True)
class Served:
    """A channel that is served."""

    name: str
    memory: Memory
    settings: ChannelSettings
    identity: bytes
    holders: set[Process] = field(default_factory=set)
    others: frozenset[tuple[int, int]] = frozenset()

    def listed(self) -> Listed:
        """What the list says of it."""
        known = {(one.pid, one.started) for one in self.holders if one.started is not None}
        return Listed(self.name, self.identity, frozenset(known) | self.others)

    def look_for_others(self, own_pid: int) -> None:
        """Notes participants that came by the memory without asking the broker, for the list."""
        known = {one.pid for one in self.holders} | {0, own_pid}
        others = set()
        with suppress(ShmbusError):
            for one in self.memory.participants():
                pid = int(getattr(one, "pid", 0))
                started = getattr(one, "start_time", None) or start_ticks(pid)
                if pid not in known and started is not None:
                    others.add((pid, int(started)))
        self.others = frozenset(others)


@dataclass(eq=False, slots=True)
class _Kept:
    """A listed name, with those of its participants that are not proved dead."""

    identity: bytes
    participants: set[tuple[int, int]]
    settled: anyio.Event


class Channels:
    """The channels of one bus.

    Args:
        bus_name: for messages.
        factory: makes and opens memory.
        channel_list: where the names outlive the broker; None for an embedded bus, which nobody restarts.
        own_pid: the broker's.
    """

    def __init__(
        self, bus_name: str, factory: MemoryFactory, channel_list: ChannelList | None, own_pid: int
    ) -> None:
        self._bus_name = bus_name
        self._factory = factory
        self._list = channel_list
        self._own_pid = own_pid
        self._served: dict[str, Served] = {}
        self._making: dict[str, anyio.Event] = {}
        self._kept: dict[str, _Kept] = {}
        for one in channel_list.read() if channel_list else ():
            self._kept[one.name] = _Kept(one.identity, set(one.participants), anyio.Event())

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def watch_kept(self, tasks: TaskGroup) -> None:
        """Starts to watch the participants of listed names; names without any are free at once."""
        for process in {pair for kept in self._kept.values() for pair in kept.participants}:
            try:
                pidfd = open_process(*process)
            except OSError:
                continue  # it cannot be told, so the name is kept until it is given back or removed
            if pidfd is None:
                self._proved_dead(process)
            else:
                tasks.start_soon(self._watch_kept, process, pidfd)
        for name in [name for name, kept in self._kept.items() if not kept.participants]:
            self._settle(name)
        self._note()

    async def _watch_kept(self, process: tuple[int, int], pidfd: int) -> None:
        try:
            await anyio.wait_readable(pidfd)
        finally:
            close_all([pidfd])
        self._proved_dead(process)
        with suppress(ShmbusError):
            self._note()

    def _proved_dead(self, process: tuple[int, int]) -> None:
        for name, kept in list(self._kept.items()):
            kept.participants.discard(process)
            if not kept.participants:
                self._settle(name)

    def _settle(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.settled.set()

    # Requests -----------------------------------------------------------------------------------------------

    async def open(
        self, name: str, wire: object, *, create: bool, process: Process | None
    ) -> tuple[Served, bool]:
        """Finds a channel or makes it; whether it was made.

        Args:
            name: of the channel.
            wire: the settings that it has to have, or None for those that it has, or the defaults.
            create: make it if it is not there.
            process: who takes part from now on; None if nobody does, and then any backing will do.

        Raises:
            Refused: it is not there and is not to be made, differs from the settings, or cannot be had.
            NoSpace: there is no room for it.
        """
        check_channel_name(name)
        wanted = None if wire is None else ChannelSettings.from_wire(wire)
        if process is not None and wanted is not None:
            self._check_reachable(name, wanted)
        await self._wait_until_known(name)
        served = self._served.get(name)
        made = served is None
        if served is None:
            if not create:
                raise Refused(self._say_missing(name))
            settings = wanted if wanted is not None else ChannelSettings()
            served = await self._make(name, lambda: self._factory.create(settings, name))
        elif wanted is not None and served.settings != wanted:
            raise Refused(
                f"channel {name!r} exists with other settings: "
                f"{served.settings.describe_differences(wanted)}; ask for those, or leave the settings out"
            )
        if process is not None:
            self._check_reachable(name, served.settings)
            self._add_holder(served, process)
        return served, made

    async def offer(
        self, name: str, wire: object, identity: bytes, descriptors: list[int], process: Process
    ) -> bool:
        """Takes a channel back from a client; whether it was merged with one that is served already.

        Args:
            name: of the channel.
            wire: its settings.
            identity: its identity.
            descriptors: control, data, event. Those that are used are taken out of the list.
            process: who offers.

        Raises:
            Refused: the name belongs to another channel, or the descriptors are not those of this one.
        """
        check_channel_name(name)
        settings = ChannelSettings.from_wire(wire)
        while name in self._making:
            await self._making[name].wait()
        served = self._served.get(name)
        merged = served is not None
        if served is None:
            kept = self._kept.get(name)
            if kept is not None and kept.identity != identity:
                raise Refused(
                    f"the name {name!r} is kept for another channel, which its participants still use"
                )
            served = await self._make(name, lambda: self._take_back(name, settings, identity, descriptors))
        elif served.identity != identity:
            raise Refused(f"the name {name!r} has been given to another channel meanwhile")
        self._add_holder(served, process)
        return merged

    def _take_back(
        self, name: str, settings: ChannelSettings, identity: bytes, descriptors: list[int]
    ) -> Memory:
        check_descriptors(descriptors, settings)
        if self._factory.check_offer(descriptors[0], descriptors[1]) != (identity, settings, name):
            raise Refused("the offered channel is not the one that its header speaks of")
        control_fd, data_fd, event_fd = descriptors
        descriptors.clear()
        return self._factory.open(control_fd, data_fd, event_fd, settings)

    async def _wait_until_known(self, name: str) -> None:
        while True:
            if name in self._making:
                await self._making[name].wait()
            elif name in self._kept:
                kept = self._kept[name]
                with anyio.move_on_after(LISTED_SECONDS) as scope:
                    await kept.settled.wait()
                if scope.cancelled_caught and self._kept.get(name) is kept:
                    pids = ", ".join(str(pid) for pid, _ in sorted(kept.participants))
                    raise Refused(
                        f"the name {name!r} is kept: the channel that had it before the broker was "
                        f"restarted is still used by process {pids}, which has not given it back yet; "
                        "try again, or end that process, or remove the channel to give the name up"
                    )
            else:
                return

    async def _make(self, name: str, work: Callable[[], Memory]) -> Served:
        if len(self._served) + len(self._making) >= limits.MAX_CHANNELS:
            raise Refused(
                f"bus {self._bus_name!r} has {limits.MAX_CHANNELS} channels (MAX_CHANNELS); remove one"
            )
        done = self._making[name] = anyio.Event()
        try:
            memory = await anyio.to_thread.run_sync(work)
            served = Served(name, memory, memory.settings, memory.identity)
            self._served[name] = served
            self._settle(name)
            try:
                self._note()
            except ShmbusError:
                self._drop(served)
                raise
        finally:
            del self._making[name]
            done.set()
        return served

    def _add_holder(self, served: Served, process: Process) -> None:
        if process.ended or process in served.holders:
            return
        served.holders.add(process)
        served.look_for_others(self._own_pid)
        self._note()

    def _check_reachable(self, name: str, settings: ChannelSettings) -> None:
        if settings.backing is Backing.ANONYMOUS:
            raise Refused(
                f"channel {name!r} lives in memory that only the broker's own workers inherit "
                '(backing="anonymous"): use it in functions that are started with bus.spawn, or choose '
                'backing="memfd"'
            )

    def find(self, name: str) -> Served:
        """The channel of that name.

        Raises:
            Refused: there is none; the message names those whose names are close.
        """
        served = self._served.get(check_channel_name(name))
        if served is None:
            raise Refused(self._say_missing(name))
        return served

    def remove(self, name: str) -> None:
        """Takes a channel from the bus: its participants are told that it is closed. Frees a kept name too.

        Raises:
            Refused: there is no such channel.
        """
        if name in self._kept:
            self._settle(name)
        else:
            self._drop(self.find(name))
        self._note()

    def drop_group(self, name: str, group: str) -> None:
        """Takes a group of a channel away, with all that it has not received."""
        self.find(name).memory.drop_group(check_group_name(group))

    def page(self, after: str) -> tuple[list[object], bool]:
        """What follows the name `after` in the channels, as much as a reply may hold; is there more?"""
        rows: list[object] = []
        room = control.PAGE_BYTES
        for name in sorted(one for one in self._served if one > after):
            served = self._served[name]
            row = {
                "name": name,
                "identity": served.identity,
                "settings": served.settings.to_wire(),
                "processes": sorted(one.pid for one in served.holders),
            }
            room -= len(control.encode_body(row))
            if rows and room < 0:
                return rows, True
            rows.append(row)
        return rows, False

    def stats(self, name: str) -> dict[str, object]:
        """What there is to know of a channel, as plain values."""
        served = self.find(name)
        return {
            "name": name,
            "settings": served.settings.to_wire(),
            "ring": control.to_plain(served.memory.stats()),
            "participants": control.to_plain(list(served.memory.participants())),
            "processes": [
                {"pid": one.pid, "command": one.command, "worker": one.worker}
                for one in sorted(served.holders, key=lambda one: one.pid)
            ],
        }

    def _say_missing(self, name: str) -> str:
        import difflib

        near = difflib.get_close_matches(name, self._served, 3, 0.5)
        if near:
            hint = f"did you mean {' or '.join(map(repr, near))}?"
        elif self._served:
            hint = f"it has {len(self._served)} others"
        else:
            hint = "it has none yet"
        return f"bus {self._bus_name!r} has no channel {name!r}; {hint}"

    # Deaths and the end -------------------------------------------------------------------------------------

    def reap(self) -> int:
        """Cleans up after whoever is proved dead, on every channel; how many slots were freed."""
        freed = 0
        for served in self._served.values():
            # One channel's trouble is its participants' alone.
            try:
                freed += served.memory.reap()
            except ShmbusError:
                pass  # poisoned, and they will hear of it
            except Exception:
                traceback.print_exc(file=sys.stderr)
        return freed

    def process_ended(self, process: Process) -> None:
        """Forgets a process, after `reap`."""
        for served in self._served.values():
            if process in served.holders:
                served.holders.discard(process)
                served.look_for_others(self._own_pid)
        self._note()

    def holds_any(self, process: Process) -> bool:
        """Whether a process takes part in any channel, as far as the broker knows."""
        return any(process in served.holders for served in self._served.values())

    def close(self, *, end: bool) -> None:
        """Unmaps everything.

        Args:
            end: close the channels first, so that whoever waits in them ends. Otherwise traffic goes on.
        """
        for served in list(self._served.values()):
            with suppress(ShmbusError):
                if end:
                    served.memory.close_channel()
            served.memory.close()
        if not end:
            with suppress(ShmbusError):
                self._note(final=True)
        self._served.clear()

    def _drop(self, served: Served) -> None:
        del self._served[served.name]
        try:
            served.memory.close_channel()
        finally:
            served.memory.close()

    def _note(self, *, final: bool = False) -> None:
        if self._list is None:
            return
        rows = [served.listed() for served in self._served.values()]
        rows += [
            Listed(name, kept.identity, frozenset(kept.participants)) for name, kept in self._kept.items()
        ]
        if final:
            rows = [row for row in rows if row.participants]
        try:
            self._list.write(rows)
        except OSError as error:
            raise NoSpace(
                f"the broker cannot write its list of channels: {error.strerror}: {self._list.path}"
            ) from None
