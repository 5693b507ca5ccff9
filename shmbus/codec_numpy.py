"""Arrays of numpy as bytes that describe themselves, and back as views of those bytes.

A description, all numbers big-endian, then the payload::

    u16 offset of the payload │ u8 order: 0 C, 1 Fortran │ u8 dimensions │ u64 × dimensions: shape │
    u16 length of the dtype │ dtype: a msgpack document │ zeros up to the payload's alignment │ payload

The dtype is ``dtype.str`` or, for a structured one, the list of its fields as ``dtype.descr`` has it,
nested at most ``limits.MAX_DTYPE_DEPTH`` deep. Nothing in it names a Python object, and an object dtype is
refused on both sides: reading an array can run nobody's code. The size of the payload must be exactly what
shape and dtype say.

numpy is not imported here until a frame holds an array; an array to send means that somebody has imported it.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgpack  # type: ignore[import-untyped]

from shmbus import limits
from shmbus.codec_parts import ALIGNMENT_BYTES, Buffer, padding

if TYPE_CHECKING:
    import numpy

_HEAD: Final = struct.Struct(">HBB")
_HEAD_LIMIT_BYTES: Final = 0xFFFF  # what the offset of the payload can say
_DTYPE_LENGTH: Final = struct.Struct(">H")
# What dtype.str can say, and no more: numpy's own parser takes whole languages.
_SIMPLE_DTYPE: Final = re.compile(r"[<>|=][biufcmMSUV][0-9]{0,10}(\[[0-9]{0,10}[A-Za-z]{1,7}\])?", re.ASCII)


class ArrayError(ValueError):
    """This array cannot be described, or this description is of no array; the message says why."""


def is_array(value: object) -> bool:
    """Whether the value is a numpy array or scalar. False without a look when nobody has imported numpy."""
    numpy = sys.modules.get("numpy")
    # A module that is still being imported by another thread has not all its names yet.
    kinds = (getattr(numpy, "ndarray", None), getattr(numpy, "generic", None))
    return None not in kinds and isinstance(value, kinds)  # type: ignore[arg-type]


def is_scalar(value: object) -> bool:
    """Whether something of :func:`is_array` is a single item without a shape."""
    return isinstance(value, sys.modules["numpy"].generic)


def describe(value: Any) -> tuple[bytes, Buffer]:
    """The description of an array or a scalar without its padding, and its payload.

    The payload is a view of the array wherever it lies in C or Fortran order, and a copy in C order
    otherwise.

    Raises:
        ArrayError: it holds objects, is of a subclass that carries more than its data, or has a dtype that
            only its own library can name.
    """
    import numpy

    array = numpy.asarray(value) if isinstance(value, numpy.generic) else value
    if type(array) not in (numpy.ndarray, numpy.memmap, numpy.recarray):
        raise ArrayError(
            "carries more than its data; send the parts that matter, such as numpy.asarray(value)"
        )
    if array.dtype.hasobject:
        raise ArrayError("holds Python objects; send value.tolist(), or use a numeric or fixed-width dtype")
    plain = array.view(numpy.ndarray)
    order = 0 if plain.flags.c_contiguous else 1 if plain.flags.f_contiguous else 0
    if plain.nbytes > limits.MAX_BUFFER_BYTES - _HEAD_LIMIT_BYTES:
        raise ArrayError(
            f"has {plain.nbytes} bytes, and a frame holds arrays of up to 4 GiB; send it in slices"
        )
    if not plain.dtype.itemsize and plain.size > 1:
        raise ArrayError("has items of no bytes; send its shape instead")
    kind = _describe_dtype(plain.dtype)
    offset = _HEAD.size + 8 * plain.ndim + _DTYPE_LENGTH.size + len(kind)
    if offset + ALIGNMENT_BYTES > _HEAD_LIMIT_BYTES:
        raise ArrayError("has a dtype of so many fields that its description passes 64 KiB; use fewer")
    head = b"".join(
        (
            _HEAD.pack(offset, order, plain.ndim),
            struct.pack(f">{plain.ndim}Q", *plain.shape),
            _DTYPE_LENGTH.pack(len(kind)),
            kind,
        )
    )
    if not plain.nbytes:
        return head, b""
    # In Fortran order it is the transpose that lies in a row. As uint8, because memoryview knows no dates and
    # no records.
    row = numpy.ascontiguousarray(plain.T if order else plain).reshape(-1)
    return head, row.view(numpy.uint8).data


def pad(head: bytes, offset: int) -> bytes:
    """The description with zeros, so that a payload right after it is aligned.

    Args:
        head: from :func:`describe`.
        offset: where the description will begin, in bytes from an aligned address.
    """
    zeros = padding(offset + len(head))
    return _HEAD.pack(len(head) + zeros, head[2], head[3]) + head[_HEAD.size :] + bytes(zeros)


def view(data: bytes, start: int, stop: int) -> numpy.ndarray[Any, Any]:
    """The array that ``data[start:stop]`` describes: a read-only view of `data`, which it keeps alive.

    Raises:
        ArrayError: it describes no array, or numpy is not installed.
    """
    try:
        import numpy
    except ImportError:
        raise ArrayError("it needs numpy: pip install shmbus[numpy]") from None
    try:
        offset, order, dimensions = _HEAD.unpack_from(data, start)
        if order > 1 or dimensions > limits.MAX_ARRAY_DIMENSIONS or start + offset > stop:
            raise ArrayError("its description is not possible")
        at = start + _HEAD.size
        shape = struct.unpack_from(f">{dimensions}Q", data, at)
        at += 8 * dimensions
        (length,) = _DTYPE_LENGTH.unpack_from(data, at)
        at += _DTYPE_LENGTH.size
        if at + length > start + offset:
            raise ArrayError("its dtype ends after its description")
        dtype = _read_dtype(data[at : at + length])
        count = math.prod(shape)
        if count * dtype.itemsize != stop - start - offset or (not dtype.itemsize and count > 1):
            raise ArrayError("its shape and dtype do not add up to its size")
        return numpy.ndarray(
            shape, dtype, buffer=data, offset=start + offset, order="F" if order else "C"
        )  # bytes are read-only, and so is the array
    except ArrayError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, struct.error, RecursionError) as error:
        raise ArrayError(str(error) or type(error).__name__) from None


@lru_cache(maxsize=64)
def _describe_dtype(dtype: numpy.dtype[Any]) -> bytes:
    try:
        kind: Any = dtype.str if dtype.names is None else dtype.descr
        # What comes back must be the same: other libraries' dtypes (bfloat16) call themselves raw bytes.
        described: bytes = msgpack.packb(kind)
        if _read_dtype(described) == dtype:
            return described
    except (ValueError, TypeError):
        pass
    raise ArrayError(f"has dtype {dtype}, which has no description; send value.view() of a standard dtype")


@lru_cache(maxsize=64)
def _read_dtype(described: bytes) -> numpy.dtype[Any]:
    import numpy

    kind = msgpack.unpackb(described, strict_map_key=False)
    if isinstance(kind, str) and _SIMPLE_DTYPE.fullmatch(kind):
        return numpy.dtype(kind)
    if isinstance(kind, list):
        return numpy.lib.format.descr_to_dtype([_read_field(field, 0) for field in kind])
    raise ArrayError("its dtype is not possible")


def _read_field(field: Any, depth: int) -> tuple[Any, ...]:
    """One field of a structured dtype, as descr has it: name, dtype and perhaps a shape."""
    if depth == limits.MAX_DTYPE_DEPTH or not isinstance(field, list) or len(field) not in (2, 3):
        raise ArrayError("its dtype has an impossible field")
    name, kind, *shape = field
    if isinstance(name, list) and len(name) == 2:  # a title and a name
        name = tuple(name)
    if not all(isinstance(text, str) for text in (name if isinstance(name, tuple) else (name,))):
        raise ArrayError("its dtype has a field without a name")
    if not (isinstance(kind, str) and _SIMPLE_DTYPE.fullmatch(kind)):
        if not isinstance(kind, list):
            raise ArrayError("its dtype has a field of no dtype")
        kind = [_read_field(inner, depth + 1) for inner in kind]
    return (name, kind, *(tuple(sizes) if isinstance(sizes, list) else sizes for sizes in shape))
