"""Codecs: objects to frames and back, without I/O.

A frame is what a record contains. :func:`get_codec` knows four ways to make one:

| name | number | for | frame | | --- | --- | --- | --- | | ``raw`` | 0 | bytes-like objects, as they are |
the bytes | | ``msgpack`` | 1 | the default: data, bytes, datetimes, numpy arrays | one msgpack document | |
``pickle`` | 2 | any Python object, between processes that trust each other | a pickle, its buffers beside
it | | ``msgspec`` | 3 | typed messages (an extra) | one msgpack document |

The number stands in each record's header and never changes. A ``bytes`` object is the same frame in msgpack
and in msgspec: a bin header and the bytes, which the native core writes and reads by itself.

Unpickling runs what the sender says. A channel uses pickle only when its settings name it, and never because
a record's header does.
"""

from __future__ import annotations

import pickle
import struct
from importlib import import_module
from typing import Any, Final, Protocol

from shmbus import codec_faults, limits
from shmbus.codec_msgpack import MsgpackCodec
from shmbus.codec_parts import Buffer, bin_header, decode_error, flat, padding
from shmbus.errors import Refused

__all__ = ["CODEC_NUMBERS", "Buffer", "Codec", "get_codec"]

CODEC_NUMBERS: Final = {"raw": 0, "msgpack": 1, "pickle": 2, "msgspec": 3}
"""The number of each codec in the header of a record."""


class Codec(Protocol):
    """What a channel needs of a codec. One codec may be used by several threads at once.

    Attributes:
        name: as in ``bus.channel(codec=…)``.
        number: as in the header of a record.
    """

    @property
    def name(self) -> str:
        """The name of the codec, as in ``bus.channel(codec=…)``."""

    @property
    def number(self) -> int:
        """The number of the codec, as in the header of a record."""

    def encode(self, message: object, /) -> Buffer:
        """One frame in one piece.

        Raises:
            EncodeError: the message has no representation in this codec.
        """

    def encode_parts(self, message: object, /) -> list[Buffer]:
        """One frame as buffers to be written one after another, large ones where they lie and not copied.

        ``len(part)`` is the size of a part in bytes. Write the parts before the message changes.

        Raises:
            EncodeError: the message has no representation in this codec.
        """

    def decode(self, frame: bytes, /) -> object:
        """The message of a frame: a private copy of the record, which the message may go on viewing.

        Raises:
            DecodeError: the frame is none of this codec's.
        """


def get_codec(name: str, *, message_type: Any = None) -> Codec:
    """A codec by its name, for one endpoint to keep.

    Args:
        name: "msgpack", "raw", "pickle" or "msgspec". message_type: with "msgspec", the type of the
        messages to decode: a ``msgspec.Struct`` or anything else that
            msgspec knows. Without it messages arrive as dictionaries, lists and so on.

    Raises:
        Refused: there is no such codec, its package is not installed, or it has no message types.

    Example:
        >>> codec = get_codec("msgpack")
        >>> codec.decode(bytes(codec.encode({"a": [1, 2.5, b"x"]})))
        {'a': [1, 2.5, b'x']}
    """
    if message_type is not None and name != "msgspec":
        raise Refused(f'message_type is for codec="msgspec", and this is codec={name!r}', setting="codec")
    if name == "msgspec":
        return MsgspecCodec(message_type)
    kinds: dict[str, type[Codec]] = {"msgpack": MsgpackCodec, "raw": RawCodec, "pickle": PickleCodec}
    kind = kinds.get(name)
    if kind is None:
        choices = " or ".join(repr(choice) for choice in CODEC_NUMBERS)
        raise Refused(f"codec={name!r} is not possible; the choices: {choices}", setting="codec")
    return kind()


class RawCodec:
    """The bytes of a bytes-like object as they are; they arrive as bytes."""

    name: Final = "raw"
    number: Final = 0

    def encode(self, message: object, /) -> Buffer:
        """The bytes themselves, or a view of them.

        Raises:
            EncodeError: it is not bytes-like.
        """
        if type(message) is bytes:
            return message
        try:
            return flat(memoryview(message))  # type: ignore[arg-type]
        except TypeError:
            mend = "value.encode()" if isinstance(message, str) else "bytes, or choose another codec"
            reason = f"the raw codec takes bytes-like objects only; send {mend}"
            raise codec_faults.encode_error([], message, reason) from None

    def encode_parts(self, message: object, /) -> list[Buffer]:
        """The bytes as the one part; see :meth:`encode`."""
        return [self.encode(message)]

    def decode(self, frame: bytes, /) -> bytes:
        """The frame itself."""
        return frame


class PickleCodec:
    """Any object that pickle takes, in protocol 5. Only for processes that may run each other's code.

    Large buffers of objects that offer them (numpy arrays do) lie beside the pickle and are not copied
    through it. Such a frame is: ``b"SBP5"``, u32 number of buffers, u64 size of the pickle and of each
    buffer, the pickle, and each buffer at the next multiple of 16. A frame without buffers is just the
    pickle, which begins with 0x80. Arrays arrive read-only when they lay beside, as with msgpack.
    """

    name: Final = "pickle"
    number: Final = 2

    _MAGIC: Final = b"SBP5"
    _HEAD: Final = struct.Struct(">4sI")

    def encode(self, message: object, /) -> Buffer:
        """One frame in one piece; see :meth:`encode_parts`."""
        parts = self.encode_parts(message)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encode_parts(self, message: object, /) -> list[Buffer]:
        """One frame as buffers to be written one after another.

        Raises:
            EncodeError: a part of the message cannot be pickled; the error has the path to it.
        """
        beside: list[memoryview] = []

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            try:
                run = buffer.raw()
            except BufferError:  # not contiguous
                return True
            if run.nbytes < limits.OUT_OF_BAND_BYTES:
                return True
            beside.append(run)
            return False

        try:
            text = pickle.dumps(message, protocol=5, buffer_callback=keep_inside)
        except Exception:  # what an object's own __reduce__ raises can be anything
            raise codec_faults.find_fault_by_trial(message, _pickle_alone) from None
        if not beside:
            return [text]
        sizes = [len(text), *map(len, beside)]
        head = self._HEAD.pack(self._MAGIC, len(beside)) + struct.pack(f">{len(sizes)}Q", *sizes)
        parts: list[Buffer] = [head, text]
        at = len(head) + len(text)
        for run in beside:
            parts += (bytes(padding(at)), run)
            at += padding(at) + len(run)
        return parts

    def decode(self, frame: bytes, /) -> object:
        """The unpickled message. It runs what the sender wrote.

        Raises:
            DecodeError: it is no pickle, or names what does not exist here.
        """
        try:
            if not frame.startswith(self._MAGIC):
                return pickle.loads(frame)
            whole = memoryview(frame)
            _, count = self._HEAD.unpack_from(frame)
            sizes = struct.unpack_from(f">{count + 1}Q", frame, self._HEAD.size)
            at = self._HEAD.size + 8 * len(sizes)
            runs = []
            for number, size in enumerate(sizes):
                at += padding(at) if number else 0
                if at + size > len(frame):
                    raise decode_error(self.name, frame, "one of its buffers is cut off", at)
                runs.append(whole[at : at + size])
                at += size
            return pickle.loads(runs[0], buffers=runs[1:])
        except Exception as failure:  # a pickle can raise anything
            raise decode_error(self.name, frame, f"{type(failure).__name__}: {failure}") from failure


def _pickle_alone(part: object) -> bytes:
    return pickle.dumps(part, protocol=5)


class MsgspecCodec:
    """Typed messages by msgspec, an extra package: structs, dataclasses and whatever else it encodes.

    Args:
        message_type: what to decode to; None: dictionaries, lists and so on.
    """

    name: Final = "msgspec"
    number: Final = 3

    def __init__(self, message_type: Any = None) -> None:
        try:
            msgspec: Any = import_module("msgspec.msgpack")
        except ImportError:
            raise Refused(
                'codec="msgspec" needs a package that is not installed: pip install shmbus[msgspec]',
                setting="codec",
            ) from None
        self._encode = msgspec.Encoder().encode
        self._decode = msgspec.Decoder(Any if message_type is None else message_type).decode

    def encode(self, message: object, /) -> Buffer:
        """One frame in one piece.

        Raises:
            EncodeError: a part of the message cannot be encoded; the error has the path to it.
        """
        try:
            frame: bytes = self._encode(message)
        except Exception:  # also what the properties of an object raise
            raise codec_faults.find_fault_by_trial(message, self._encode) from None
        return frame

    def encode_parts(self, message: object, /) -> list[Buffer]:
        """One frame as parts: only bytes at the top are not copied; see :meth:`encode`."""
        if type(message) is bytes and limits.OUT_OF_BAND_BYTES <= len(message) <= limits.MAX_BUFFER_BYTES:
            return [bin_header(len(message)), message]
        return [self.encode(message)]

    def decode(self, frame: bytes, /) -> object:
        """The message of a frame.

        Raises:
            DecodeError: the frame is no msgpack, or is not what the message type asks for.
        """
        try:
            return self._decode(frame)
        except Exception as failure:  # also what the __post_init__ of a struct raises
            fault = codec_faults.locate_fault(frame)
            reason, offset = (f"{failure}", None) if fault is None else (fault.reason, fault.offset)
            raise decode_error(self.name, frame, reason, offset) from failure
