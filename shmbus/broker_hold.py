"""Holding a bus: one broker at a time, its listening socket, and the list of channels that outlives it.

Theory of operation
===================

Three files lie side by side: ``<bus>.sock``, ``<bus>.lock`` and ``<bus>.channels``.

*The lock.* A broker holds its bus for as long as it has an flock on the lock file. The kernel gives it back
however the broker ends, so there is no stale lock, and no guessing from pids. What is written inside (pid,
start, since, command) is for the message to whoever comes second, nothing else depends on it. At the end the
file is unlinked, while it is locked. So somebody may open the file, then lose it to the unlink, and lock what
has no name any more: after each flock the name is looked up again, and if it leads to another file (or to
none) the attempt starts over. What is locked and has the name is the one.

*The socket.* Only the holder of the lock touches it. A socket file that nobody answers at is left from a
broker that was killed, and is unlinked. One that somebody answers at, although the lock is ours, belongs to a
broker whose lock file was taken away: its bus is not free. What is no socket is not ours to remove. Mode:
fchmod of the socket before bind sets the mode of the file that bind makes, so it never has a wider one.

*The list.* Clients give their channels back to a broker that was restarted. Until they have, a channel's name
must not be given to a new channel: two halves of a program would talk past each other. So each channel's
name, identity and participants (pid and start time) are written down, replaced atomically, before a client
learns of a change, and the next broker reads them. It is written for a broker that is killed, not for a
machine that fails: nothing of it means anything after a boot.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from shmbus import control, limits
from shmbus.control_io import command_of, peer_of, start_ticks, this_world
from shmbus.errors import Refused
from shmbus.places import check_socket_path

_LOCK_BYTES: Final = 4096
_LIST_BYTES: Final = 16 << 20  # every channel of a full bus with every participant that it can have


class Hold:
    """The right to be the broker of a bus, with its listening socket, until ``release``.

    Args:
        path: where the socket goes; the lock and the list lie beside it.
        bus_name: for messages.
        mode: of the socket: who may connect.

    Raises:
        Refused: another broker holds the bus (the message says which), the path is too long or taken by
            something else, or the folder does not let us.
    """

    def __init__(self, path: str, *, bus_name: str, mode: int = 0o600) -> None:
        self.path = check_socket_path(path)
        self.bus_name = bus_name
        stem = self.path.removesuffix(".sock")
        self.lock_path, self.list_path = f"{stem}.lock", f"{stem}.channels"
        self._socket_node: tuple[int, int] | None = None
        self._lock = self._take_lock()
        try:
            self.listener = self._listen(mode)
        except BaseException:
            self._give_back()
            raise

    def release(self) -> None:
        """Gives the bus back: the socket and the lock file are gone afterwards. Harmless when repeated."""
        if self._lock < 0:
            return
        self.listener.close()
        # Somebody may have put another socket there by hand; only ours is ours to remove.
        with suppress(OSError):
            if self._socket_node == _node(os.lstat(self.path)):
                os.unlink(self.path)
        self._give_back()

    def _give_back(self) -> None:
        with suppress(OSError):
            if _node(os.fstat(self._lock)) == _node(os.lstat(self.lock_path)):
                os.unlink(self.lock_path)
        os.close(self._lock)
        self._lock = -1

    def _take_lock(self) -> int:
        while True:
            try:
                lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise Refused(
                    f"bus {self.bus_name!r} cannot be served at {self.path}: its lock file {self.lock_path} "
                    f"cannot be opened: {error.strerror}"
                ) from None
            try:
                if self._locked(lock):
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def _locked(self, lock: int) -> bool:
        found = os.fstat(lock)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"the lock file {self.lock_path} is no regular file; remove it")
        if found.st_uid != os.geteuid():
            raise Refused(f"the lock file {self.lock_path} belongs to user {found.st_uid}, not to you")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(self._say_who(_read_holder(lock))) from None
        try:
            if _node(found) != _node(os.lstat(self.lock_path)):
                return False
        except FileNotFoundError:
            return False
        own = os.getpid()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"pid={own}\nstart={start_ticks(own)}\nsince={since}\ncommand={command_of()}\n".encode()
        os.ftruncate(lock, 0)
        os.pwrite(lock, text, 0)
        return True

    def _listen(self, mode: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale_socket()
            os.fchmod(listener.fileno(), mode & 0o777)
            listener.bind(self.path)
            self._socket_node = _node(os.lstat(self.path))
            if stat.S_IMODE(os.lstat(self.path).st_mode) != mode & 0o777:
                os.chmod(self.path, mode & 0o777)  # the umask took bits away that were asked for
            listener.listen(limits.MAX_CLIENTS)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise Refused(
                f"bus {self.bus_name!r} cannot be served: no socket can be made at {self.path}: "
                f"{error.strerror}"
            ) from None
        except Refused:
            listener.close()
            raise
        return listener

    def _remove_stale_socket(self) -> None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise Refused(
                f"bus {self.bus_name!r} cannot be served at {self.path}: something that is no socket is "
                "there; remove it, or choose another path"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except BlockingIOError:  # somebody listens, and is busy
                raise Refused(self._say_who(None)) from None
            except OSError:
                with suppress(FileNotFoundError):
                    os.unlink(self.path)
            else:
                pid = peer_of(probe).pid
                raise Refused(self._say_who(Holder(pid, None, command_of(pid))))

    def _say_who(self, holder: Holder | None) -> str:
        who = "another broker that is only just starting or ending"
        if holder is not None:
            who = f"process {holder.pid}"
            who += f" ({holder.command})" if holder.command else ""
            who += f" since {holder.since}" if holder.since else ""
        return (
            f"bus {self.bus_name!r} at {self.path} is held by {who}; "
            "stop that one first, or choose another name"
        )


class Holder(NamedTuple):
    """The broker that holds a bus, as it wrote down itself."""

    pid: int
    since: str | None
    command: str


def _read_holder(lock: int) -> Holder | None:
    lines = os.pread(lock, _LOCK_BYTES, 0).decode(errors="replace").splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        pid, start = int(found["pid"]), int(found["start"])
    except (KeyError, ValueError):
        return None
    # What a dead holder wrote stays until the next one has written: then nobody is known yet.
    return Holder(pid, found.get("since"), found.get("command", "")) if start_ticks(pid) == start else None


def _node(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


# The list of channels ---------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """A channel that a broker has served: its participants are pairs of pid and start time."""

    name: str
    identity: bytes
    participants: frozenset[tuple[int, int]]


class ChannelList:
    """The file ``<bus>.channels``. Only the holder of the bus writes it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> list[Listed]:
        """What the last broker left; nothing, if there is no list or it is of another boot or namespace.

        Raises:
            Refused: there is a list, and it cannot be understood. It is not overwritten: names in it may be
                in use.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Refused(f"the list of channels {self.path} cannot be opened: {error.strerror}") from None
        with open(fd, "rb") as file:
            packed = file.read(_LIST_BYTES + 1)
        try:
            if len(packed) > _LIST_BYTES:
                raise Refused(f"it is longer than {_LIST_BYTES} bytes")
            body = control.decode_body(packed)
            if body.get("version") != 1:
                raise Refused(f"it has version {body.get('version')!r}, and this shmbus knows 1")
            if body.get("world") != this_world():
                return []
            return [_from_row(row) for row in _as_list(body.get("channels"))]
        except Refused as error:
            raise Refused(
                f"the list of channels {self.path} cannot be used: {error}; if no process uses the bus any "
                "more, remove the file"
            ) from None

    def write(self, channels: Iterable[Listed]) -> None:
        """Replaces the list, atomically; an empty one removes the file.

        Raises:
            OSError: it cannot be written.
        """
        rows = [
            [one.name, one.identity, [number for pair in sorted(one.participants) for number in pair]]
            for one in channels
        ]
        draft = f"{self.path}.new"
        if not rows:
            for path in (self.path, draft):  # a broker that was killed may have left a draft
                with suppress(FileNotFoundError):
                    os.unlink(path)
            return
        packed = control.encode_body({"version": 1, "world": this_world(), "channels": rows}, _LIST_BYTES)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(draft, flags, 0o600), "wb") as file:
            file.write(packed)
        os.replace(draft, self.path)


def _as_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise Refused("it is damaged")
    return value


def _from_row(row: object) -> Listed:
    match row:
        case [str(name), bytes(identity), list(numbers)] if len(numbers) % 2 == 0:
            if all(type(number) is int for number in numbers):
                return Listed(name, identity, frozenset(zip(numbers[::2], numbers[1::2], strict=True)))
    raise Refused("it is damaged")
