"""What a worker is told, and what it leaves behind: a call, and notes.

Calls go in. They are pickled only when they have to cross into another interpreter, inside the pickle of the
process that is being started, so that descriptors can come along; and they are loaded late, when the worker
can already report what is wrong with them.

Notes come out, through a pipe, as text: ``kind status bytes-of-summary bytes-of-text``, a newline, then both.
The write end does not block and a note is cut to fit an empty pipe, so writing one waits for nobody; the
reader looks when the process is dead, so reading one waits for nobody either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from shmbus.errors import Refused, ShmbusError

__all__ = ["NOTE_BYTES", "Call", "Note", "read_notes", "write_note"]

NOTE_BYTES: Final = 48 * 1024
"""A note fits into an empty pipe (64 KiB), whatever the worker has to say."""


class Call:
    """A target with its arguments; see the top of this file."""

    def __init__(
        self, target: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._parts = (target, args, dict(kwargs))
        self._blob: bytes | None = None

    def dumps(self) -> bytes:
        """Pickle the parts.

        Raises:
            Refused: a part cannot be pickled; the message names it and says how to mend it.
        """
        from multiprocessing.reduction import ForkingPickler

        try:
            return bytes(ForkingPickler.dumps(self._parts))
        except ShmbusError:
            raise
        except Exception as error:
            raise Refused(self._unpicklable(error)) from error

    def _unpicklable(self, error: Exception) -> str:
        from multiprocessing.reduction import ForkingPickler

        target, args, kwargs = self._parts
        named = [("target", target)]
        named += [(f"args[{index}]", value) for index, value in enumerate(args)]
        named += [(f"kwargs[{key!r}]", value) for key, value in kwargs.items()]
        where, what = "the call", ""
        for label, value in named:
            try:
                ForkingPickler.dumps(value)
            except Exception as found:
                where, what, error = label, f" ({_short(value)})", found
                break
        return (
            f"{where}{what} cannot be pickled, as it must be for a worker that does not start by fork: "
            f'{error}. Define it at the top level of a module, or start the worker with start_method="fork"'
        )

    def __getstate__(self) -> bytes:
        return self.dumps()

    def __setstate__(self, blob: bytes) -> None:
        self._blob = blob

    def run(self) -> None:
        """Load the parts, if they came pickled, and call the target."""
        if self._blob is not None:
            from multiprocessing.reduction import ForkingPickler

            try:
                self._parts = ForkingPickler.loads(self._blob)
            except Exception as error:
                error.add_note(
                    "The worker could not load its target and arguments. What it needs must be importable in "
                    "a fresh interpreter: at the top level of a module that has a file."
                )
                raise
        target, args, kwargs = self._parts
        target(*args, **kwargs)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return text if len(text) <= 100 else text[:97] + "..."


@dataclass(frozen=True, slots=True)
class Note:
    """One note of a worker: `kind` is started, returned, raised, exited, terminated or unguarded."""

    kind: str
    status: int
    summary: str = ""
    text: str = ""


def write_note(fd: int, note: Note) -> None:
    """Write `note` without ever waiting. A note that nobody can take is lost: there is nobody to tell."""
    summary = note.summary.replace("\n", " ").encode("utf-8", "backslashreplace")[:1000]
    text = note.text.encode("utf-8", "backslashreplace")
    if len(text) > NOTE_BYTES:
        third = NOTE_BYTES // 3
        gone = len(text) - NOTE_BYTES
        text = text[:third] + b"\n  ... %d bytes left out ...\n" % gone + text[-2 * third :]
    head = b"%s %d %d %d\n" % (note.kind.encode(), note.status, len(summary), len(text))
    with suppress(OSError):
        os.write(fd, head + summary + text)


def read_notes(data: bytes) -> list[Note]:
    """The notes in `data`, as far as they are whole; the text of the last may be cut short."""
    notes = []
    while data:
        head, newline, data = data.partition(b"\n")
        fields = head.split()
        if not newline or len(fields) != 4:
            break
        try:
            status, summary_bytes, text_bytes = (int(field) for field in fields[1:])
        except ValueError:  # somebody else wrote to this descriptor
            break
        summary = data[:summary_bytes]
        text = data[summary_bytes : summary_bytes + text_bytes]
        data = data[summary_bytes + text_bytes :]
        words = [part.decode("utf-8", "replace") for part in (fields[0], summary, text)]
        notes.append(Note(words[0], status, words[1], words[2]))
    return notes
