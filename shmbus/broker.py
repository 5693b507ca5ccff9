"""The broker process: serving a bus in this process, or in a new one that belongs to its owner.

Theory of operation
===================

``serve`` is a named bus: it takes hold of the bus, serves it until SIGTERM or SIGINT, and leaves no socket
behind.

``start_embedded`` is the broker that a program starts for itself. It is a new interpreter, never a fork (a
fork would copy threads' locks and the program's memory), and it knows nothing of the program's ``__main__``.
It runs in a session of its own, so that a Ctrl-C in the terminal does not reach it. Owner and broker share a
*lifeline*, a socketpair, and the broker has a pidfd of its owner::

    owner                                  broker
    socketpair, Popen ───────────────────▶ folder, lock, socket, listen
    reads one frame ◀───────────────────── ready, or why not
    connects ────────────────────────────▶ (imports the server) answers
    closes its end, or dies ─────────────▶ end of the lifeline, or the pidfd: ends workers, folder, itself

The lifeline alone would not do: a forked child of the owner has a copy of its end (Python's forks close it in
the child, others do not), and then the owner's death closes nothing. The pidfd alone would not do either: an
owner can be done with its bus and live on. The folder is made by the broker, so whichever of the two is
killed, the other one is there to remove it.

"Ready" is said as soon as the socket listens: whoever connects waits in its queue. Importing the event loop
takes longer than everything before it together, and the owner goes on meanwhile. So this module imports the
server only where it runs it. Signals are blocked until the server's own handling of them stands; one that
comes earlier is delivered then, and the hold is released like ever.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from shmbus import control
from shmbus.broker_hold import ChannelList, Hold
from shmbus.broker_owner import GRACE_SECONDS, EmbeddedBroker, start_embedded
from shmbus.control_io import send_some
from shmbus.errors import Refused, ShmbusError
from shmbus.places import make_private_folder, remove_private_folder, runtime_folder, socket_path

if TYPE_CHECKING:
    from shmbus.broker_memory import MemoryFactory
    from shmbus.broker_server import End

__all__ = ["EmbeddedBroker", "serve", "start_embedded"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def serve(
    path: str | None = None,
    *,
    bus_name: str,
    mode: int = 0o600,
    on_ready: Callable[[str], None] | None = None,
    memory_factory: MemoryFactory | None = None,
) -> str:
    """Serves a named bus in this process until SIGTERM or SIGINT. Call it in the main thread.

    Args:
        path: of the socket; None is the place of that name, in this user's runtime folder.
        bus_name: the bus.
        mode: of the socket. With bits for group or others, whoever the mode lets connect is served.
        on_ready: called with the path once clients can connect.
        memory_factory: a stand-in for the ring, for tests.

    Returns:
        Why it ended, in words.

    Raises:
        Refused: the bus is held by another broker, or its place is not safe, too long or not writable, or its
            list of channels is damaged.
    """
    from shmbus.settings import check_bus_name

    check_bus_name(bus_name)
    with _signals_blocked():
        hold = _hold_by_name(bus_name, mode) if path is None else Hold(path, bus_name=bus_name, mode=mode)
        try:
            ChannelList(hold.list_path).read()  # if it cannot be used, it is now that people want to know
            if on_ready is not None:
                on_ready(hold.path)
            return _run(hold, mode=mode, memory_factory=memory_factory).reason
        finally:
            hold.release()
            if path is None:
                with suppress(OSError):  # other buses are there
                    os.rmdir(os.path.dirname(hold.path))


def _hold_by_name(bus_name: str, mode: int) -> Hold:
    while True:
        folder = runtime_folder(create=True)
        try:
            return Hold(socket_path(bus_name), bus_name=bus_name, mode=mode)
        except Refused:
            if os.path.isdir(folder):
                raise
            # The last broker of another bus took the folder away before our lock was in it.


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(
    hold: Hold,
    *,
    mode: int = 0o600,
    lifeline: socket.socket | None = None,
    owner: int | None = None,
    grace_seconds: float = GRACE_SECONDS,
    memory_factory: MemoryFactory | None = None,
) -> End:
    import anyio

    from shmbus.broker_fork import raise_descriptor_limit
    from shmbus.broker_server import Broker

    if memory_factory is None:
        from shmbus.broker_memory import RingFactory

        memory_factory = RingFactory()
    factory = memory_factory

    async def main() -> End:
        broker = Broker(
            hold.listener,
            bus_name=hold.bus_name,
            factory=factory,
            channel_list=None if lifeline is not None else ChannelList(hold.list_path),
            open_to_others=bool(mode & 0o077),
            lifeline=lifeline,
            owner=owner,
            grace_seconds=grace_seconds,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_on_signal, broker.stop)
            end = await broker.run()
            tasks.cancel_scope.cancel()
        return end

    raise_descriptor_limit()
    return anyio.run(main)


async def _stop_on_signal(stop: Callable[[str], None]) -> None:
    import anyio

    with anyio.open_signal_receiver(*_SIGNALS) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            async for number in received:
                stop(f"{signal.Signals(number).name} arrived")
        finally:  # what is left to do is not to be interrupted by the default action
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


# The embedded broker: the broker's side ---------------------------------------------------------------------


def _serve_embedded(lifeline_fd: int, owner: int, grace_seconds: float, bus_name: str) -> int:
    # SIGINT is for the terminal's foreground; whoever sends it here by hand means the same as SIGTERM.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    lifeline = socket.socket(fileno=lifeline_fd)
    for descriptor in (lifeline_fd, owner):
        os.set_inheritable(descriptor, False)
    folder = ""
    try:
        folder = make_private_folder()
        hold = Hold(os.path.join(folder, "bus.sock"), bus_name=bus_name)
    except ShmbusError as error:
        if folder:
            remove_private_folder(folder)
        _tell(lifeline, {"error": control.error_to_wire(error)})
        return 1
    try:
        if _tell(lifeline, {"path": hold.path}):
            _run(hold, lifeline=lifeline, owner=owner, grace_seconds=grace_seconds)
    finally:
        hold.release()
        remove_private_folder(folder)
    return 0


def _tell(lifeline: socket.socket, body: dict[str, object]) -> bool:
    """Whether the owner could be told; if not, it is gone."""
    try:
        send_some(lifeline, control.encode_frame(body))
    except OSError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """The entry of an embedded broker's process. People use ``shmbus broker``."""
    words = sys.argv[1:] if arguments is None else arguments
    match words:
        case ["--embedded", lifeline, owner, grace, bus_name]:
            return _serve_embedded(int(lifeline), int(owner), float(grace), bus_name)
        case ["--bus", bus_name]:
            try:
                serve(bus_name=bus_name)
            except Refused as error:
                print(error, file=sys.stderr)
                return 1
            return 0
    print("usage: shmbus broker --bus NAME", file=sys.stderr)
    return 2


if __name__ == "__main__":
    # Under -m this file runs as __main__; what others import is shmbus.broker, and there must be one of it.
    from shmbus.broker import main as _main

    sys.exit(_main())
