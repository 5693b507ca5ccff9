"""What the control protocol needs of the kernel: descriptors in messages, and who is at the other end.

Every descriptor that arrives is close-on-exec from the start (MSG_CMSG_CLOEXEC: a fork and exec in another
thread cannot take it along). A message whose descriptors were cut off (MSG_CTRUNC) is fatal to its
connection: at the descriptor limit the kernel drops them silently, and half a channel is worse than an error.

A *pidfd* names a process for as long as it is open, whatever becomes of the number; it is readable when the
process has ended. A pid with a start time names a process too, across a restart of whoever notes it, but only
within one boot and one pid namespace.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from shmbus import limits
from shmbus.errors import Refused

_CREDENTIALS: Final = struct.Struct("=iII")
_RECEIVE_BYTES: Final = 64 << 10


class Peer(NamedTuple):
    """Who connected, by the kernel's word; pid is 0 for a process that cannot be seen from here."""

    pid: int
    uid: int
    gid: int


def receive_some(connected: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """One receive: bytes and descriptors, both empty at the end of the stream.

    Args:
        connected: a Unix stream socket.
        flags: more flags for recvmsg.

    Raises:
        Refused: descriptors were cut off. Those that did arrive are closed.
        OSError: as recvmsg says, BlockingIOError among them.
    """
    room = socket.CMSG_SPACE(limits.MAX_FRAME_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, message_flags, _ = connected.recvmsg(
        _RECEIVE_BYTES, room, flags | socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if message_flags & socket.MSG_CTRUNC:
        close_all(descriptors)
        raise Refused(
            f"descriptors of a control frame were cut off: more than {limits.MAX_FRAME_DESCRIPTORS} came "
            "at once (MAX_FRAME_DESCRIPTORS), or this process is at its limit of open files (ulimit -n)"
        )
    return data, descriptors.tolist()


def send_some(connected: socket.socket, data: bytes | memoryview, descriptors: Sequence[int] = ()) -> int:
    """One send; the descriptors go with its first byte. Returns how many bytes went.

    Raises:
        OSError: as sendmsg says; nothing went, the descriptors neither. No SIGPIPE.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    return connected.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def peer_of(connected: socket.socket) -> Peer:
    """Who connected, as the kernel noted it at connect (SO_PEERCRED); at the client's end, who listens."""
    size = _CREDENTIALS.size
    return Peer(*_CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors; one that is closed already is no error."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def duplicate(*descriptors: int) -> tuple[int, ...]:
    """Copies of descriptors, close-on-exec: all of them, or an OSError and none."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))
    except OSError:
        close_all(copies)
        raise
    return tuple(copies)


# Processes --------------------------------------------------------------------------------------------------


def pidfd_pid(pidfd: int) -> int | None:
    """The pid of a pidfd's process as seen from here: -1 when it is gone, 0 when it cannot be seen.

    None when the descriptor is no pidfd. (A descriptor of /proc/<pid> can send signals too; it is none.)
    """
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as lines:
            for line in lines:
                if line.startswith("Pid:"):
                    return int(line[4:])
    except OSError:
        pass
    return None


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended; a zombie has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None when no such process can be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command stands in parentheses and may hold any byte, a parenthesis too.
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def open_process(pid: int, started: int) -> int | None:
    """A pidfd of the process that has this pid and started at this tick; None is the proof that it is dead.

    Raises:
        OSError: it cannot be told, for instance at the descriptor limit.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # The descriptor is open, so the number cannot change hands between the two looks any more.
    if start_ticks(pid) == started and not has_ended(pidfd):
        return pidfd
    os.close(pidfd)
    return None


def command_of(pid: int | str = "self") -> str:
    """The command line of a process, for people to recognise it; empty when it cannot be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as words:
            text = words.read(1000).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    return "".join(char if char.isprintable() else "?" for char in text)[:200]


def this_world() -> str:
    """What pids and start times are relative to: the boot and the pid namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
