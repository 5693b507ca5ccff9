"""The bytes that codecs are made of: headers of msgpack elements, and buffers as plain runs of bytes.

A frame is written as *parts*: buffers that follow each other. A large buffer is a part of its own, so that it
goes into the ring from where it lies. Only the header before it is made here; that is all that msgpack adds
to it.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from shmbus.errors import DecodeError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""One part of a frame: contiguous single bytes, so that ``len()`` is its size."""

ALIGNMENT_BYTES: Final = 16
"""Payloads of arrays begin at a multiple of this, the largest alignment that a numpy dtype asks for."""

EXT32: Final = struct.Struct(">BIb")
"""The header of an ext element with a length in 32 bits: 0xc9, length, code."""

# The ext codes of shmbus. Frames travel between processes of one machine, so the codes need no registry; they
# are away from both ends of the range, where people begin to count their own.
EXT_ARRAY: Final = 83
EXT_SCALAR: Final = 84
EXT_INDEX: Final = 85
EXT_HOLE: Final = 86


def bin_header(size: int) -> bytes:
    """The header of a msgpack bin of `size` bytes, which is at most ``limits.MAX_BUFFER_BYTES``."""
    if size <= 0xFF:
        return bytes((0xC4, size))
    if size <= 0xFFFF:
        return struct.pack(">BH", 0xC5, size)
    return struct.pack(">BI", 0xC6, size)


def ext_header(code: int, size: int) -> bytes:
    """The header of a msgpack ext of `size` bytes, always the one with 32 bits of length."""
    return EXT32.pack(0xC9, size, code)


def padding(offset: int) -> int:
    """How many bytes are missing from `offset` to the next multiple of ``ALIGNMENT_BYTES``."""
    return -offset % ALIGNMENT_BYTES


def flat(buffer: Buffer) -> Buffer:
    """The bytes of any buffer as one run, without a copy if they lie so (in C order).

    Args:
        buffer: bytes, a bytearray or a memoryview of any layout.
    """
    if isinstance(buffer, (bytes, bytearray)):
        return buffer
    if buffer.format == "B" and buffer.ndim == 1 and buffer.c_contiguous:
        return buffer
    try:
        return buffer.cast("B")
    except (TypeError, ValueError):  # not contiguous, or a format that memoryview cannot cast ("<d")
        return buffer.tobytes()


def decode_error(codec: str, frame: bytes, reason: str, offset: int | None = None) -> DecodeError:
    """The error about a frame that is none of this codec's.

    Args:
        codec: its name.
        frame: all of it.
        reason: what is wrong.
        offset: where, in bytes from the beginning of the frame, if that is known.
    """
    where = "" if offset is None else f" (offset {offset})"
    return DecodeError(
        f"these {len(frame)} bytes are no message of the {codec} codec: {reason}{where}; open the channel "
        "with the codec that it was sent with, or take the record as it is with recv_bytes()",
        offset=offset,
    )
