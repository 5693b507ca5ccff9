"""The command ``shmbus``: arguments to calls, progress, tables. One file per command, listed in ``root``.

`main` is the frame around every command. Whatever ends one becomes an exit status, and at most one line:

| how it ended | status | standard error |
| --- | --- | --- |
| by itself | its own: 0, or 1 | |
| ``ShmbusError``, ``OSError`` | 1 | one line; ``shmbus --traceback COMMAND`` shows where it came from |
| wrong usage | 2 | what is wrong, and where to look |
| Ctrl-C | 130 | one line |
| SIGTERM, SIGHUP | 143, 129 | |
| nobody reads the output any more | 141, as if by SIGPIPE | |

This file imports next to nothing. A worker that starts by spawn or forkserver imports it with the program,
and a Ctrl-C before it has been read cannot be caught here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

__all__ = ["main"]

INTERRUPTED = 128 + signal.SIGINT
NOBODY_READS = 128 + signal.SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: the words after ``shmbus``; None: this process's own, and this process is about to end.

    Raises:
        SystemExit: a SIGTERM or SIGHUP came.
    """
    try:
        with _cleaning_up_at_signals():
            return _flush(_run(sys.argv[1:] if arguments is None else list(arguments)))
    except KeyboardInterrupt:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # everything has ended; once is enough
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return NOBODY_READS


def _run(words: list[str]) -> int:
    import click

    from shmbus.cli.root import root
    from shmbus.errors import ShmbusError

    if "_SHMBUS_COMPLETE" in os.environ:  # a shell asks for completions
        root.main(words, prog_name="shmbus")
    try:
        with root.make_context("shmbus", list(words)) as context:
            status = root.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (ShmbusError, OSError) as error:
        if isinstance(error, BrokenPipeError) or words[:1] == ["--traceback"]:
            raise
        _say(error)
        return 1
    return status if isinstance(status, int) else 0


def _flush(status: int) -> int:
    """Write out what is in buffers; returns the exit status, which is not 0 if that cannot be done."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _forget_output()
        if not status:
            _say(error)
        return status or 1
    return status


@contextmanager
def _cleaning_up_at_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit in the block, so that what has to be removed is removed."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and means it
                signal.signal(number, end)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _say(what: object) -> None:
    """One line on the standard error, if there is one."""
    text = str(what)
    if isinstance(what, OSError) and what.strerror:
        text = what.strerror if what.filename is None else f"{what.filename}: {what.strerror}"
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(what).__name__)
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(f"shmbus: {line}\n")
            sys.stderr.flush()


def _forget_output() -> None:
    """Have what is still in buffers go nowhere, or Python would complain about it at its end."""
    if sys.stdout is None:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):
        os.dup2(null, sys.stdout.fileno())
    os.close(null)
