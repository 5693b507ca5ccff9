"""The notes that a worker leaves: whole, cut short, or garbage."""

from __future__ import annotations

import os

import pytest

from shmbus import worker_messages
from shmbus.worker_messages import Note, read_notes, write_note


@pytest.mark.parametrize(
    "length", [0, 1, 100, worker_messages.NOTE_BYTES, worker_messages.NOTE_BYTES + 1, 10**6]
)
def test_a_note_fits_into_an_empty_pipe_whatever_its_length(length: int) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    write_note(writer, Note("started", 0))
    write_note(writer, Note("raised", 1, "sum\nmary", "x" * length))
    os.close(writer)
    with open(reader, "rb") as file:
        first, second = read_notes(file.read())
    assert first == Note("started", 0)
    assert (second.kind, second.status, second.summary) == ("raised", 1, "sum mary")
    assert second.text == "x" * length if length <= worker_messages.NOTE_BYTES else "left out" in second.text


@pytest.mark.parametrize("garbage", [b"", b"\n", b"raised", b"raised 1 2\n", b"a b c d\n", b"\xff\xfe\n\n\n"])
def test_garbage_in_the_report_is_no_note(garbage: bytes) -> None:
    assert read_notes(garbage) == []


def test_a_note_that_nobody_can_take_is_dropped() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    write_note(writer, Note("started", 0))
    os.close(writer)
