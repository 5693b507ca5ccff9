"""The owner's side of an embedded broker: starting and ending it. ``broker`` has the picture of both sides.

The new interpreter gets this one's ``sys.path``, so it finds its modules where they were found here, whatever
the program has done to the path; and no ``-m``, so the folder that the program happens to be in has no say in
what is imported. Of this process's descriptors it gets the lifeline and the pidfd, and the standard output
and error (for the workers that it may fork, and for its own complaints).
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from shmbus import control
from shmbus.control_io import has_ended, receive_some
from shmbus.errors import NoBroker
from shmbus.places import remove_private_folder

if TYPE_CHECKING:
    from subprocess import Popen

__all__ = ["GRACE_SECONDS", "EmbeddedBroker", "start_embedded"]

GRACE_SECONDS: Final = 3.0
"""How long the workers of an embedded bus have between SIGTERM and SIGKILL when their owner is gone."""

END_SECONDS: Final = 20.0
"""How long a broker may take to end, beyond the grace of its workers, before it is killed."""

START_SECONDS: Final = 60.0
"""How long a broker may take to start; on an idle machine it takes a twentieth of a second."""


class EmbeddedBroker:
    """A broker process that belongs to this process, and ends with it.

    It belongs to the process that started it: in a forked child, ``close`` does nothing.

    Attributes:
        path: its socket.
        bus_name: its bus.
        process: the process.
    """

    def __init__(
        self,
        path: str,
        bus_name: str,
        process: Popen[bytes],
        lifeline: socket.socket,
        patience_seconds: float,
    ) -> None:
        self.path = path
        self.bus_name = bus_name
        self.process = process
        self._lifeline = lifeline
        self._patience_seconds = patience_seconds
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        _embedded.add(self)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def close(self) -> None:
        """Ends the broker, and with it the bus and the workers that are left. Harmless when repeated."""
        if os.getpid() != self._owner_pid:
            return
        with self._lock:
            # Shut down, not only closed: a child that was forked by other means than Python's has a copy.
            with suppress(OSError):
                self._lifeline.shutdown(socket.SHUT_RDWR)
            self._lifeline.close()
            _wait(self.process, self._patience_seconds)
            # If it was killed, it could not do this.
            remove_private_folder(os.path.dirname(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget_in_child(self) -> None:
        self._lock = threading.Lock()
        self._lifeline.close()


_embedded: weakref.WeakSet[EmbeddedBroker] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for broker in list(_embedded):
        broker._forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


def start_embedded(*, bus_name: str = "embedded", grace_seconds: float = GRACE_SECONDS) -> EmbeddedBroker:
    """Starts a broker for this process alone, and returns when clients can connect to it.

    Args:
        bus_name: for messages and listings.
        grace_seconds: for workers, between SIGTERM and SIGKILL, when this process is gone.

    Raises:
        Refused: it could not be started, for instance because no folder could be made.
        NoBroker: its process ended, or did nothing, before it was ready.
    """
    import subprocess

    from shmbus.settings import check_bus_name

    check_bus_name(bus_name)
    if not sys.executable:
        raise NoBroker(
            "a broker cannot be started: sys.executable does not say where the Python interpreter is"
        )
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with its:
            owner = os.pidfd_open(os.getpid())
            try:
                process = subprocess.Popen(
                    _command_line(bus_name, its.fileno(), owner, grace_seconds),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(its.fileno(), owner),
                    start_new_session=True,
                )
            except OSError as error:
                raise NoBroker(
                    f"a broker cannot be started with {sys.executable}: {error.strerror}"
                ) from None
            finally:
                os.close(owner)
        try:
            path = _await_ready(own, process)
        except BaseException:
            own.close()
            _wait(process, 5.0)
            raise
        return EmbeddedBroker(path, bus_name, process, own, grace_seconds + END_SECONDS)
    except BaseException:
        own.close()
        raise


def _command_line(bus_name: str, lifeline: int, owner: int, grace_seconds: float) -> list[str]:
    flags = ["-P"] + ["-E"] * sys.flags.ignore_environment + ["-s"] * sys.flags.no_user_site
    flags += ["-O"] * sys.flags.optimize
    boot = "import sys; sys.path[:] = eval(sys.argv.pop()); from shmbus.broker import main; sys.exit(main())"
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    words = ["--embedded", str(lifeline), str(owner), repr(float(grace_seconds)), bus_name, ascii(path)]
    return [sys.executable, *flags, "-c", boot, *words]


def _await_ready(lifeline: socket.socket, process: Popen[bytes]) -> str:
    decoder = control.FrameDecoder()
    lifeline.settimeout(START_SECONDS)
    while True:
        try:
            data, descriptors = receive_some(lifeline)
        except TimeoutError:
            process.kill()
            raise NoBroker(
                f"the broker process {process.pid} was not ready after {START_SECONDS:g} s and was killed"
            ) from None
        except ConnectionResetError:
            data, descriptors = b"", []
        if not data:
            raise NoBroker(
                f"the broker process {process.pid} ended with status {process.wait()} before it was ready; "
                "what it had to say is on the standard error"
            )
        decoder.feed(data, descriptors)
        frame = decoder.next_frame()
        if frame is not None:
            if "error" in frame.body:
                raise control.error_from_wire(frame.body["error"])
            lifeline.settimeout(None)
            return str(frame.body.get("path"))


def _wait(process: Popen[bytes], seconds: float) -> None:
    """Waits for a process without polling, and kills it when it takes too long."""
    if process.returncode is None:
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            pidfd = -1
        if pidfd >= 0:
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(seconds * 1000)
                if not has_ended(pidfd):
                    process.kill()
            finally:
                os.close(pidfd)
    process.wait()
