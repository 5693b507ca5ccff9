"""What msgpack cannot carry, why, and what to send instead: the words of an EncodeError.

These rules describe what the packer does; they decide nothing. A test holds the two together: whatever the
packer refuses, a rule here explains.
"""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from shmbus import codec_numpy, limits

_MENDS: Final = {
    "set": "send a list: sorted(value) or list(value)",
    "frozenset": "send a list: sorted(value) or list(value)",
    "range": "send list(value)",
    "dict_keys": "send list(value)",
    "dict_values": "send list(value)",
    "dict_items": "send list(value)",
    "generator": "send list(value)",
    "map": "send list(value)",
    "filter": "send list(value)",
    "zip": "send list(value)",
    "deque": "send list(value)",
    "complex": "send [value.real, value.imag]",
    "Decimal": "send str(value)",
    "Fraction": "send [value.numerator, value.denominator]",
    "UUID": "send str(value) or value.bytes",
    "date": "send value.isoformat(), or an aware datetime",
    "time": "send value.isoformat()",
    "timedelta": "send value.total_seconds()",
    "PosixPath": "send str(value)",
    "PurePosixPath": "send str(value)",
    "array": "send value.tolist(), or memoryview(value) for its bytes",
    "mmap": "send memoryview(value)",
    "mappingproxy": "send dict(value)",
    "Exception": "send str(value)",
}
_LAST_RESORT: Final = 'send what it is made of, or make the channel with codec="pickle"'


def judge(part: Any) -> str | None:
    """What is wrong with a part that is no list, tuple or dict, and how to mend it; None when nothing is."""
    if part is None or isinstance(part, float) or type(part) in (msgpack.ExtType, msgpack.Timestamp):
        return None
    if codec_numpy.is_array(part):
        return _judge_array(part)
    if isinstance(part, int):
        return None if -(1 << 63) <= part < 1 << 64 else _judge_large_int(part)
    if isinstance(part, str):
        return _judge_str(part)
    if isinstance(part, (bytes, bytearray, memoryview)):
        size = part.nbytes if isinstance(part, memoryview) else len(part)
        return (
            None
            if size <= limits.MAX_BUFFER_BYTES
            else f"it has {size} bytes, and a frame holds 4 GiB; send pieces"
        )
    if type(part) is datetime:
        return _judge_datetime(part)
    return f"msgpack has no such type; {_mend(part)}"


def judge_key(key: object) -> str | None:
    """The same of a key of a dict."""
    if isinstance(key, tuple):
        return (
            "it would arrive as a list, which cannot be a key; send a list of [key, value] pairs, or str keys"
        )
    return judge(key)


def _judge_array(array: Any) -> str | None:
    try:
        codec_numpy.describe(array)
    except codec_numpy.ArrayError as fault:
        return f"it {fault}"
    return None


def _judge_large_int(number: int) -> str:
    return (
        f"it needs {number.bit_length()} bits, and msgpack has -2**63 to 2**64-1; send value.to_bytes(…), "
        "or a str or float of it"
    )


def _judge_str(text: str) -> str | None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        return (
            f"it holds a lone surrogate at index {error.start}, which UTF-8 has no bytes for; send bytes: "
            'os.fsencode(value) for a file name, or value.encode("utf-8", "surrogatepass")'
        )
    return (
        None
        if size <= limits.MAX_BUFFER_BYTES
        else f"it has {size} bytes, and a frame holds 4 GiB; send pieces"
    )


def _judge_datetime(moment: datetime) -> str | None:
    if moment.utcoffset() is None:
        return (
            "it is naive, and means another moment elsewhere; say which zone it is in: value.astimezone() "
            "for local time, value.replace(tzinfo=datetime.UTC) for UTC"
        )
    return None


def _mend(part: Any) -> str:
    for kind in type(part).__mro__:
        if kind.__name__ in _MENDS:
            return _MENDS[kind.__name__]
        if kind is datetime:
            return "send a plain datetime (of pandas: value.to_pydatetime())"
    if isinstance(part, enum.Enum):
        return "send value.value"
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return "send dataclasses.asdict(value)"
    if hasattr(part, "__next__"):
        return "send list(value)"
    return _LAST_RESORT
