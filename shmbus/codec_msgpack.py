"""The msgpack codec: any message as one msgpack document, its large buffers never copied on the way.

*Encoding.* A reused C packer packs the message. It asks back (the hook) for what is not plain: tuples,
subclasses, numpy. Where a large buffer belongs, the hook leaves a *hole*, a fixed marker of 18 bytes, and
sets the buffer aside; afterwards the packed text is cut at the markers, and the parts of the frame are
text, header, buffer, text, header, … The frame is still one valid document. If a message itself contains
the marker, the count of the pieces gives that away, and the buffers are packed the plain way.

The packer never asks about bytes, bytearrays and memoryviews: to set those aside, containers must be
*looked* through first, which costs more than packing a small message. So looking is lazy: first when a
frame came out large, then before packing for as long as messages of this codec go on holding large buffers.
A look has a budget that grows with the frame, so that finding buffers costs no more than copying them.

*Arrays* in numpy's ext can be viewed where they lie only if the reader knows where that is, and the
unpacker does not tell. A frame with large arrays is therefore a list of two, an ext with the offset of each
array, and the message: ``[index, message]``. The reader replaces each array by a hole, unpacks the rest,
and fills the holes with views.

*Limits.* Every length is checked by the unpacker against what is left of the frame; the index is checked
against the ext headers that it points to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from shmbus import codec_faults, codec_numpy, limits
from shmbus.codec_look import Look, SetAside, only_plain
from shmbus.codec_mend import judge, judge_key
from shmbus.codec_parts import (
    EXT32,
    EXT_ARRAY,
    EXT_HOLE,
    EXT_INDEX,
    EXT_SCALAR,
    Buffer,
    bin_header,
    decode_error,
    ext_header,
    flat,
)
from shmbus.errors import DecodeError

_HOLE: Final = msgpack.ExtType(EXT_HOLE, b"shmbus: a buffer")
_MARK: Final[bytes] = msgpack.packb(_HOLE)
_INDEX_START: Final = b"\x92\xc9"
_HOLE_CODE: Final = bytes((EXT_HOLE,))
_INDEX_CODE: Final = bytes((EXT_INDEX,))
_INDEX_BODY: Final = 1 + EXT32.size

_OUT_OF_BAND_BYTES: Final = limits.OUT_OF_BAND_BYTES
_TOP_LEVEL: Final = frozenset({bytes, bytearray, memoryview, tuple})
_REFUSALS: Final = (TypeError, ValueError, OverflowError, BufferError)
_KEPT_PACKER_BYTES: Final = 1 << 20  # a packer that has grown beyond this is not kept
_LOOK_LEAST: Final = 64
_LOOK_MOST: Final = 1 << 20


class _Packing:
    """One packer and what its hook has found during the message under way. Used by one call at a time."""

    __slots__ = ("holes", "pack", "tuples", "whole")

    def __init__(self) -> None:
        self.holes: list[SetAside] = []
        self.tuples = False
        # Pack buffers into the text: for the one message in 2**128 that contains the marker by itself.
        self.whole = False
        packer = msgpack.Packer(default=self._convert, strict_types=True, datetime=True)
        self.pack: Callable[[object], bytes] = packer.pack

    def _convert(self, part: Any) -> object:
        """The packer's hook: what to pack in the place of a part that it does not know."""
        kind = type(part)
        if kind is tuple:
            self.tuples = True
            return list(part)
        if kind is SetAside:
            return self._leave_hole(part)
        if codec_numpy.is_array(part):
            return self._convert_array(part)
        if isinstance(part, (list, tuple)):
            if isinstance(part, tuple):
                self.tuples = True
            return list(part)
        if isinstance(part, dict):
            return dict(part)
        if isinstance(part, (bytes, bytearray)):
            return bytes(part)
        # The unbound methods give the plain value, whatever a subclass prints itself as.
        if isinstance(part, int) and kind is not int:
            return int.__pos__(part)
        if isinstance(part, float) and kind is not float:
            return float.__pos__(part)
        if isinstance(part, str) and kind is not str:
            return str.__str__(part)
        raise TypeError(f"cannot encode {kind.__name__}")

    def _convert_array(self, array: Any) -> object:
        head, payload = codec_numpy.describe(array)
        if codec_numpy.is_scalar(array):
            return msgpack.ExtType(EXT_SCALAR, codec_numpy.pad(head, 0) + payload)
        if len(payload) < limits.OUT_OF_BAND_BYTES or self.whole:
            return msgpack.ExtType(EXT_ARRAY, codec_numpy.pad(head, 0) + payload)
        return self._leave_hole(SetAside(payload, head))

    def _leave_hole(self, buffer: SetAside) -> object:
        if self.whole:
            return bytes(buffer.payload)
        self.holes.append(buffer)
        return _HOLE

    def finish(self, subject: object, text: bytes) -> list[SetAside]:
        """After packing: put the packer to rest, and give the buffers in the order of their markers."""
        holes = self.holes
        if holes:
            self.holes = []
        if self.tuples:
            self.tuples = False
            _check_keys(subject)
        self.whole = False
        if len(text) <= _KEPT_PACKER_BYTES:
            _idle.append(self)
        return holes


# Packers at rest. A call takes one and gives it back, or makes one; pop and append are atomic, so neither
# threads nor a message whose parts call the codec themselves ever share one. After a failure a packer is not
# given back.
_idle: Final[list[_Packing]] = []


def _take() -> _Packing:
    try:
        return _idle.pop()
    except IndexError:
        return _Packing()


class MsgpackCodec:
    """The default codec: what JSON has, and bytes, datetimes and numpy arrays.

    Sent and received alike: None, bool, int (-2**63 … 2**64-1), float, str, bytes, list, dict, aware
    datetimes (which arrive in UTC, and must have a date there), numpy arrays and scalars. Tuples arrive as
    lists, bytearrays and memoryviews as bytes, subclasses as what they are subclasses of. A key can be
    anything here that is hashable on arrival: no tuple. A ``msgpack.ExtType`` passes as it is; codes 83 to 86
    are taken.

    Arrays arrive read-only: they are views of the received frame, which they keep alive, aligned for their
    dtype. ``array.copy()`` is writable. Where an array was sent from does not matter: any layout, order or
    byte order.
    """

    name: Final = "msgpack"
    number: Final = 1

    def __init__(self) -> None:
        # The budget of the look before packing; 0 while messages hold no large buffers. Threads may race to
        # set it: it decides about speed only.
        self._look_first = 0

    def encode(self, message: object) -> Buffer:
        """One frame in one piece; see :meth:`encode_parts`."""
        parts = self.encode_parts(message)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encode_parts(self, message: object) -> list[Buffer]:
        """One frame as buffers to be written one after another.

        Large buffers and arrays of the message are parts themselves, not copies: write them before they
        change.

        Raises:
            EncodeError: a part of the message cannot be encoded; the error has the path to it.
        """
        # The way of most messages, small and plain, comes first and calls nothing but the packer.
        if not self._look_first and type(message) not in _TOP_LEVEL:
            packing = _take()
            try:
                frame = packing.pack(message)
                if not packing.tuples and not packing.holes and len(frame) < _OUT_OF_BAND_BYTES:
                    _idle.append(packing)
                    return [frame]
                holes = packing.finish(message, frame)
            except _REFUSALS as failure:
                return self._finish(*_pack_again(message, failure), None)
            return self._finish(message, frame, holes, None)
        if isinstance(message, (bytes, bytearray, memoryview)):
            return _encode_buffer(message)
        # A tuple at the top is no key, so it needs no question.
        subject = list(message) if type(message) is tuple else message
        look = None
        if self._look_first:
            look = Look(self._look_first)
            subject = look.through(subject)
        try:
            frame, holes = _pack(subject)
        except _REFUSALS as failure:
            subject, frame, holes = _pack_again(message, failure)
        return self._finish(subject, frame, holes, look)

    def _finish(self, subject: object, text: bytes, holes: list[SetAside], look: Look | None) -> list[Buffer]:
        """Look for buffers in what came out large, and make the parts."""
        if look is None and len(text) >= limits.OUT_OF_BAND_BYTES:
            # How many buffers there can be at most: no more is worth looking for.
            look = Look(_LOOK_LEAST + len(text) // 256)
            subject = look.through(subject)
            if look.found_bytes:
                text, holes = _pack(subject)
        if look is not None:
            self._look_first = (
                _LOOK_LEAST + look.found_bytes // 256 if look.found_bytes else self._look_first >> 1
            )
        if not holes:
            return [text]
        return _splice(text, holes) or [_pack(subject, whole=True)[0]]

    def decode(self, frame: bytes) -> object:
        """The message of a frame.

        Args:
            frame: a private copy of the record, never shared memory: arrays of the message are views of it.

        Raises:
            DecodeError: the frame is no msgpack, or holds what cannot be built here.
        """
        try:
            if frame.startswith(_INDEX_START) and frame[6:7] == _INDEX_CODE:
                return _decode_indexed(frame)
            return msgpack.unpackb(frame, timestamp=3, strict_map_key=False, ext_hook=_read_ext)
        except (ValueError, TypeError, OverflowError, MemoryError, msgpack.UnpackException) as failure:
            raise _explain(frame, failure) from None


def _encode_buffer(buffer: Buffer) -> list[Buffer]:
    run = flat(buffer)
    size = len(run)
    if size > limits.MAX_BUFFER_BYTES:
        raise codec_faults.encode_error([], buffer, str(judge(buffer)))
    if size < limits.OUT_OF_BAND_BYTES:
        return [bin_header(size) + run]
    return [bin_header(size), run]


def _pack(subject: object, *, whole: bool = False) -> tuple[bytes, list[SetAside]]:
    """The text of a message, with a marker for each of the buffers beside it."""
    packing = _take()
    packing.whole = whole
    frame = packing.pack(subject)
    return frame, packing.finish(subject, frame)


def _pack_again(message: object, failure: Exception) -> tuple[object, bytes, list[SetAside]]:
    """After a failure: pack with memoryviews made contiguous, or else say which part it was.

    Raises:
        EncodeError: always, unless a memoryview was all that was wrong.
    """
    if isinstance(failure, BufferError):
        subject = Look(_LOOK_MOST).through(message)
        try:
            return subject, *_pack(subject)
        except _REFUSALS as again:
            failure = again
    fault = codec_faults.find_fault(message, judge, judge_key)
    if fault is None:
        fault = codec_faults.encode_error([], message, f"msgpack cannot encode it: {failure}")
    raise fault from None


def _check_keys(subject: object) -> None:
    """Refuse a tuple as a key: it packs as a list, which no key can be on arrival."""
    left: list[Any] = [subject]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if not only_plain(map(type, part)) and any(isinstance(key, tuple) for key in part):
                raise TypeError("a tuple as a key")
            part = part.values()
        for inner in part:
            if isinstance(inner, (dict, list, tuple)) and not (
                type(inner) is tuple and only_plain(map(type, inner))
            ):
                left.append(inner)


def _splice(text: bytes, holes: list[SetAside]) -> list[Buffer] | None:
    """Put the buffers where the markers are, or None when the message has markers of its own."""
    pieces = text.split(_MARK)
    if len(pieces) != len(holes) + 1:
        return None
    arrays = sum(hole.head is not None for hole in holes)
    starts: list[int] = []
    parts: list[Buffer] = []
    run = bytearray(_INDEX_BODY + 8 * arrays if arrays else 0)
    at = len(run)
    for piece, hole in zip(pieces, holes, strict=False):
        at += len(piece)
        size = len(hole.payload)
        if hole.head is None:
            head = bin_header(size)
        else:
            starts.append(at)
            described = codec_numpy.pad(hole.head, at + EXT32.size)
            head = ext_header(EXT_ARRAY, len(described) + size) + described
        run += piece
        run += head
        parts += (run, hole.payload)
        at += len(head) + size
        run = bytearray()
    run += pieces[-1]
    if run:
        parts.append(run)
    if arrays:
        index = b"\x92" + ext_header(EXT_INDEX, 8 * arrays) + struct.pack(f">{arrays}Q", *starts)
        parts[0][: len(index)] = index  # type: ignore[index]
    return parts


def _decode_indexed(frame: bytes) -> object:
    """The message of ``[index, message]``, its arrays viewed where they lie."""
    _, size, _ = EXT32.unpack_from(frame, 1)
    at = _INDEX_BODY + size
    if size % 8 or at > len(frame):
        raise decode_error("msgpack", frame, "the index of its arrays is cut off", 1)
    whole = memoryview(frame)
    pieces: list[Buffer] = []
    views: list[Any] = []
    for number, (start,) in enumerate(struct.iter_unpack(">Q", whole[_INDEX_BODY:at])):
        if not at <= start <= len(frame) - EXT32.size:
            raise decode_error(
                "msgpack", frame, "the index of its arrays leaves the message", _INDEX_BODY + 8 * number
            )
        first, length, code = EXT32.unpack_from(frame, start)
        body = start + EXT32.size
        if first != 0xC9 or code != EXT_ARRAY or body + length > len(frame):
            raise decode_error("msgpack", frame, "the index of its arrays has no array", start)
        views.append(codec_numpy.view(frame, body, body + length))
        pieces += (whole[at:start], b"\xd6", _HOLE_CODE, number.to_bytes(4, "big"))
        at = body + length
    pieces.append(whole[at:])

    def read_ext(code: int, data: bytes) -> object:
        if code == EXT_HOLE and len(data) == 4:
            number = int.from_bytes(data, "big")
            if number < len(views):
                return views[number]
        return _read_ext(code, data)

    return msgpack.unpackb(b"".join(pieces), timestamp=3, strict_map_key=False, ext_hook=read_ext)


def _read_ext(code: int, data: bytes) -> object:
    if code == EXT_ARRAY:
        return codec_numpy.view(data, 0, len(data))
    if code == EXT_SCALAR:
        return codec_numpy.view(data, 0, len(data))[()]
    return msgpack.ExtType(code, data)


def _explain(frame: bytes, failure: Exception) -> DecodeError:
    fault = codec_faults.locate_fault(frame)
    if fault is not None:
        return decode_error("msgpack", frame, fault.reason, fault.offset)
    if isinstance(failure, codec_numpy.ArrayError):
        return DecodeError(f"an array in a frame of {len(frame)} bytes cannot be read: {failure}")
    return decode_error("msgpack", frame, str(failure) or type(failure).__name__)
