"""Forking a worker out of the broker, so that it inherits the anonymous channels.

The broker is an event loop with sockets, and the child must be none of that. It never returns from here: the
frames of the loop below it stay as they are, forever asleep, and so does every object that they refer to; the
garbage collector is told to leave them alone. That matters, because the child closes their descriptors under
them: the numbers will be given to new files, which no destructor of the broker's must ever close. What is
shared with the broker after a fork is closed, never shut down (the lock of the bus is one such thing:
unlocking it here would unlock it there).

Signals are blocked across the fork, so that none arrives while the broker's handlers still stand; the
worker's entry unblocks them when its own do. Threads (those that reserve space) do not exist in the child;
the locks that they may have held are not used here.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable
from contextlib import suppress
from contextvars import Context
from typing import Final, NoReturn

from shmbus import client
from shmbus.broker_channels import Served
from shmbus.settings import Backing

__all__ = ["fork_worker", "raise_descriptor_limit"]

BROKER_DESCRIPTORS: Final = 16_384
"""What a full bus needs, and more: three for each channel, two for each client."""

_BLOCKED: Final = (signal.SIGINT, signal.SIGTERM)
_limit_before: tuple[int, int] | None = None


def raise_descriptor_limit() -> None:
    """Lets this process open what a full bus needs, where the machine allows it. Nothing here uses select."""
    global _limit_before
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = BROKER_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(BROKER_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            _limit_before = soft, hard


def fork_worker(payload: bytes, pipe: int, entry: str, path: str, channels: Iterable[Served]) -> int:
    """Forks a worker that runs ``entry(payload, pipe)``. Returns its pid; the child does not return.

    Args:
        payload: for the worker's entry; the broker does not look into it.
        pipe: the write end of the pipe that the worker reports to.
        entry: "module:function".
        path: of the bus.
        channels: those of the bus; the worker keeps the anonymous ones.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads; see above
            pid = os.fork()
        if pid == 0:
            _become_worker(payload, pipe, entry, path, list(channels))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _become_worker(payload: bytes, pipe: int, entry: str, path: str, channels: list[Served]) -> NoReturn:
    status = 1
    try:
        gc.freeze()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kept = {0, 1, 2, pipe}
        for served in channels:
            memory = served.memory
            if served.settings.backing is Backing.ANONYMOUS:
                kept |= {memory.control_fd, memory.data_fd, memory.event_fd}
                client.inherited[path, served.name] = memory
            else:
                with suppress(Exception):
                    memory.close()
        _close_all_but(kept)
        if _limit_before is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, _limit_before)  # the worker may use select
        module, _, function = entry.partition(":")
        run = getattr(importlib.import_module(module), function)
        # The worker may run a loop of its own: it must find neither the broker's nor its context variables.
        if "asyncio" in sys.modules:
            sys.modules["asyncio"]._set_running_loop(None)
        found = Context().run(run, payload, pipe)
        status = found if isinstance(found, int) else 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1 if error.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status & 0xFF)


def _close_all_but(kept: set[int]) -> None:
    # Listing needs a descriptor itself; it is closed by the time that the names are read as numbers.
    for descriptor in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        if descriptor not in kept:
            with suppress(OSError):
                os.close(descriptor)
