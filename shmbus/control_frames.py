"""The frames of the control protocol: bytes and descriptors in, checked dictionaries out. No I/O.

A frame is a header of eight bytes and a body::

    u32 body length, little endian │ u8 version │ u8 descriptors │ u16 zero │ body: one msgpack map

Descriptors travel beside the bytes (SCM_RIGHTS). The kernel hands them over no later than the last byte of
the frame that they were sent with, and in order; so a queue of them, and the number in each header, pair them
exactly however the bytes are cut. More descriptors than the headers announce, or fewer, break the protocol.

A length is checked when the header is complete, so no peer can make the other hold more than one frame. Lists
and maps are counted while the body is unpacked (one byte of msgpack can become a Python object of sixty),
then depth and types are checked without recursion. Only None, bool, int, float, str, bytes, list and dict
with str keys come through.

Descriptors are plain numbers here; the caller closes those that it is given, with a frame or by
``take_descriptors`` when a connection ends.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgpack  # type: ignore[import-untyped]

from shmbus import limits
from shmbus.errors import Refused

VERSION: Final = 1
"""The version of the control protocol, in every frame."""

MAX_CONTAINERS: Final = 16_384
"""Lists and dictionaries in one frame. The longest honest frame, a page of ``list``, has a few thousand."""

MAX_MAP_KEYS: Final = 4_096
"""Keys of one dictionary in a frame."""

_HEADER: Final = struct.Struct("<IBBH")
_PLAIN: Final = (type(None), bool, int, float, str, bytes)


class Frame(NamedTuple):
    """One frame as it arrived: its body, unpacked and checked, and its descriptors."""

    body: dict[str, object]
    descriptors: tuple[int, ...]


def encode_body(body: Mapping[str, object], limit_bytes: int = limits.MAX_FRAME_BYTES) -> bytes:
    """The body of a frame, packed.

    Raises:
        Refused: it is longer than `limit_bytes`, or holds what msgpack cannot.
    """
    try:
        packed = bytes(msgpack.packb(dict(body), use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"a control frame cannot hold this: {error}") from None
    if len(packed) > limit_bytes:
        raise Refused(
            f"a control frame of {len(packed)} bytes is beyond the limit of {limit_bytes} "
            "(MAX_FRAME_BYTES); data belongs into channels"
        )
    return packed


def encode_frame(body: Mapping[str, object], descriptors: int = 0) -> bytes:
    """The bytes of one frame.

    Args:
        body: str keys, plain values.
        descriptors: how many descriptors will be sent along.

    Raises:
        Refused: the body is beyond ``limits.MAX_FRAME_BYTES``, or holds what msgpack cannot.
    """
    packed = encode_body(body)
    if not 0 <= descriptors <= limits.MAX_FRAME_DESCRIPTORS:
        raise Refused(
            f"{descriptors} descriptors with one control frame are beyond the limit of "
            f"{limits.MAX_FRAME_DESCRIPTORS} (MAX_FRAME_DESCRIPTORS)"
        )
    return _HEADER.pack(len(packed), VERSION, descriptors, 0) + packed


def decode_body(packed: bytes | bytearray | memoryview) -> dict[str, object]:
    """The body of a frame, checked against every limit.

    Raises:
        Refused: it is no msgpack map with str keys, holds other types than the protocol's, names a key twice,
            or is deeper or has more parts than the limits allow.
    """
    containers = 0

    def count() -> None:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise Refused(f"a control frame holds more than {MAX_CONTAINERS} lists and maps (MAX_CONTAINERS)")

    def make_list(items: list[object]) -> list[object]:
        count()
        return items

    def make_map(pairs: list[tuple[object, object]]) -> dict[object, object]:
        count()
        made = dict(pairs)
        if len(made) != len(pairs):
            raise Refused("a control frame names a key twice")
        return made

    def refuse_extension(code: int, data: bytes) -> object:
        raise Refused(f"a control frame cannot hold the msgpack extension {code}")

    try:
        body = msgpack.unpackb(
            packed,
            list_hook=make_list,
            object_pairs_hook=make_map,
            ext_hook=refuse_extension,
            max_map_len=MAX_MAP_KEYS,
        )
    except Refused:
        raise
    except Exception as error:  # the unpacker's errors have no common base, and none of them is ours
        raise Refused(f"a control frame is no msgpack: {type(error).__name__} {error}".rstrip()) from None
    if not isinstance(body, dict):
        raise Refused(f"the body of a control frame is a map, and this is {type(body).__name__}")
    _check_plain(body)
    return body


def _check_plain(body: dict[object, object]) -> None:
    level: list[object] = [body]
    depth = 0
    while level:
        depth += 1
        below: list[object] = []
        for part in level:
            if isinstance(part, dict):
                if not all(type(key) is str for key in part):
                    raise Refused("the keys of a control frame are text")
                below.extend(part.values())
            elif isinstance(part, list):
                below.extend(part)
            elif type(part) not in _PLAIN:
                raise Refused(f"a control frame cannot hold {type(part).__name__}")
        if depth > limits.MAX_CONTROL_DEPTH and any(isinstance(part, (dict, list)) for part in level):
            raise Refused(
                f"a control frame is nested deeper than {limits.MAX_CONTROL_DEPTH} levels (MAX_CONTROL_DEPTH)"
            )
        level = below


class FrameDecoder:
    """Bytes and descriptors in, however they are cut; whole frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return bool(self._buffer) or bool(self._descriptors)

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Takes what one receive brought."""
        self._buffer += data
        self._descriptors.extend(descriptors)

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more has been fed.

        Raises:
            Refused: the bytes are no frame of this protocol. Nothing more can be read from this peer.
        """
        if len(self._buffer) < _HEADER.size:
            surplus = len(self._descriptors) - (limits.MAX_FRAME_DESCRIPTORS if self._buffer else 0)
            if surplus > 0:
                raise Refused(f"{surplus} descriptors came that no control frame announces")
            return None
        body_bytes, version, announced, reserved = _HEADER.unpack_from(self._buffer)
        if version != VERSION:
            raise Refused(
                f"the other process speaks version {version} of the control protocol and this one version "
                f"{VERSION}; use the same shmbus on both sides"
            )
        if reserved or announced > limits.MAX_FRAME_DESCRIPTORS:
            raise Refused("the header of a control frame makes no sense; this peer speaks another protocol")
        if body_bytes > limits.MAX_FRAME_BYTES:
            raise Refused(
                f"a control frame announces {body_bytes} bytes; the limit is {limits.MAX_FRAME_BYTES} "
                "(MAX_FRAME_BYTES)"
            )
        end = _HEADER.size + body_bytes
        if len(self._buffer) < end:
            if len(self._descriptors) > announced:
                raise Refused(
                    f"{len(self._descriptors)} descriptors came, and the frame announces {announced}"
                )
            return None
        if len(self._descriptors) < announced:
            raise Refused(f"the frame announces {announced} descriptors, and {len(self._descriptors)} came")
        body = decode_body(bytes(self._buffer[_HEADER.size : end]))
        del self._buffer[:end]
        return Frame(body, tuple(self._descriptors.popleft() for _ in range(announced)))

    def take_descriptors(self) -> list[int]:
        """The descriptors that came and belong to no frame that was handed out. They are the caller's now."""
        taken = list(self._descriptors)
        self._descriptors.clear()
        return taken
