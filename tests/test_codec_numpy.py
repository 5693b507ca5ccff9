"""numpy in messages: any layout arrives as a read-only, aligned view, and nothing else is an array."""

import struct
import subprocess
import sys

import msgpack
import numpy as np
import pytest
from codec_help import LARGE, by_examples, joined, through, value_or_error
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shmbus import codec_numpy, limits
from shmbus.codec import get_codec
from shmbus.codec_parts import EXT_ARRAY, EXT_HOLE, EXT_INDEX, ext_header
from shmbus.errors import DecodeError, EncodeError

STRUCTURED = np.dtype(
    [("t", "<M8[ns]"), ("xyz", ">f4", (3,)), ("name", "U3"), ("inner", [("a", "i1"), ("b", "?")])]
)
PADDED = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"]}, align=True)
TITLED = np.dtype([(("the title", "x"), "<i2"), ("y", "<i2")])
DTYPES = [
    *("?", "i1", "u1", "<i2", ">i2", "<u4", ">i8", "<f2", "<f4", ">f8", "<f8", "<c8", ">c16", "longdouble"),
    *("S5", "U3", ">U3", "M8[ns]", "M8[25s]", "M8[D]", "m8[us]", "V7"),
    *(STRUCTURED, PADDED, TITLED),
]


@pytest.fixture
def codec():
    return get_codec("msgpack")


def filled(dtype, shape):
    """An array whose bytes all differ a little, without what is not a value (of bool, str)."""
    array = np.zeros(shape, dtype)
    if array.dtype.kind not in "UbV" and array.size:
        array.reshape(-1).view(np.uint8)[:] = np.arange(array.nbytes) % 60
    return array


def assert_same(back, sent):
    assert type(back) is np.ndarray
    assert back.dtype == sent.dtype
    assert back.shape == sent.shape
    assert back.tobytes() == sent.tobytes()
    assert not back.flags.writeable
    assert back.flags.aligned


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3), (5000,), (70, 80)])
def test_an_array_of_any_dtype_and_shape_comes_back(codec, dtype, shape):
    array = filled(dtype, shape)
    assert_same(through(codec, array), array)
    back = through(codec, {"odd": 1, "array": array, "more": [array, b"x"]})
    assert_same(back["array"], array)
    assert_same(back["more"][0], array)
    assert (back["odd"], back["more"][1]) == (1, b"x")


@pytest.mark.parametrize("scale", [4, 40])
@pytest.mark.parametrize(
    "layout",
    [
        lambda a: a.T,
        lambda a: a[::2],
        lambda a: a[:, 1],
        lambda a: a.reshape(-1)[::3],
        lambda a: a.reshape(-1)[::-1],
        lambda a: a[:, ::-1],
        lambda a: a[1:, 1:],
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[0], a.shape),
        lambda a: a.swapaxes(0, 1)[..., None],
        lambda a: a.reshape(2, 2, -1).transpose(2, 0, 1),
    ],
)
def test_an_array_of_any_layout_comes_back(codec, scale, layout):
    array = layout(np.arange(float(scale * scale)).reshape(scale, scale))
    assert_same(through(codec, [array])[0], array)


@by_examples
@given(
    npst.arrays(
        npst.scalar_dtypes() | npst.array_dtypes(), npst.array_shapes(min_dims=0, min_side=0, max_side=9)
    )
)
def test_whatever_array_can_be_made_comes_back(array):
    if array.dtype.subdtype is not None or (not array.dtype.itemsize and array.size > 1):
        return
    assert_same(through(get_codec("msgpack"), {"a": array})["a"], array)


@pytest.mark.parametrize("order", "CF")
def test_a_large_array_is_a_part_itself_and_is_not_copied(codec, order):
    array = np.ones((300, 200), order=order)
    for message in (array, {"id": 1, "frame": array}, [array, array[0]]):
        parts = codec.encode_parts(message)
        assert any(
            np.shares_memory(np.frombuffer(part, np.uint8), array)
            for part in parts
            if len(part) == array.nbytes
        )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_large_arrays_arrive_as_views_of_the_frame_itself(codec, count):
    message = {"a": [np.full(LARGE + i, i, np.uint16) for i in range(count)], "pad": "x" * count}
    frame = joined(codec.encode_parts(message))
    whole = np.frombuffer(frame, np.uint8)
    for sent, back in zip(message["a"], codec.decode(frame)["a"], strict=True):
        assert_same(back, sent)
        assert np.shares_memory(back, whole)


def test_an_array_keeps_its_frame_alive_and_its_copy_is_writable(codec):
    back = through(codec, np.arange(10_000))
    copy = back.copy()
    copy[0] = 7
    assert back[0] == 0
    assert int(back[-1]) == 9999
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1


def test_a_frame_with_arrays_is_one_msgpack_document(codec):
    array = np.arange(LARGE, dtype="<u2")
    frame = joined(codec.encode_parts({"small": array[:3], "large": array, "n": 1, "bytes": bytes(LARGE)}))
    index, message = msgpack.unpackb(frame)
    assert index.code == EXT_INDEX
    assert message["large"].code == message["small"].code == EXT_ARRAY
    assert message["large"].data.endswith(array.tobytes())
    assert (message["n"], message["bytes"]) == (1, bytes(LARGE))


@pytest.mark.parametrize(
    "scalar",
    [
        np.int8(-3),
        np.uint64(2**64 - 1),
        np.float32(1.5),
        np.float64(0.1),
        np.longdouble(1) / 3,
        np.complex128(1 + 2j),
        np.bool_(True),
        np.datetime64("2026-01-01T00:00:00.000000001"),
        np.timedelta64(5, "D"),
        np.str_("größe"),
        np.str_(""),
        np.bytes_(b"abc"),
        np.void(b"abc"),
        np.zeros((), STRUCTURED)[()],
    ],
    ids=repr,
)
def test_a_numpy_scalar_comes_back_as_the_same_scalar(codec, scalar):
    for back in (through(codec, scalar), through(codec, {"a": [scalar]})["a"][0]):
        assert type(back) is type(scalar)
        assert back == scalar
        assert back.dtype == scalar.dtype


def test_numpy_scalars_can_be_keys(codec):
    assert through(codec, {np.int64(3): 1}) == {3: 1}


def test_arrays_between_large_buffers_keep_their_order(codec):
    message = [bytes(LARGE), np.arange(LARGE), b"x", {"k": bytearray(LARGE)}, np.arange(LARGE * 2), "end"]
    for _ in range(2):
        back = through(codec, message)
        assert [type(part).__name__ for part in back] == [
            "bytes",
            "ndarray",
            "bytes",
            "dict",
            "ndarray",
            "str",
        ]
        assert np.array_equal(back[1], message[1])
        assert np.array_equal(back[4], message[4])


def test_a_message_with_an_array_and_the_marker_of_a_buffer_comes_back_too(codec):
    from shmbus.codec_msgpack import _MARK

    array = np.arange(LARGE)
    back = through(codec, {"m": [_MARK, _MARK], "a": array, "b": bytes(LARGE)})
    assert back["m"] == [_MARK, _MARK]
    assert back["b"] == bytes(LARGE)
    assert_same(back["a"], array)


def test_a_memmap_and_a_recarray_arrive_as_plain_arrays(codec, tmp_path):
    mapped = np.memmap(tmp_path / "data", np.uint8, "w+", shape=(8192,))
    mapped[:] = 3
    assert_same(through(codec, [mapped])[0], np.asarray(mapped))
    del mapped
    records = np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
    assert through(codec, records).tolist() == [(1, 2.5)]


def test_views_of_numpy_memory_in_any_format_arrive_as_bytes(codec):
    for dtype in ("<f8", ">f8", "?", "<i2"):
        array = np.zeros(LARGE, dtype)
        assert through(codec, [array.data, array[::2].data]) == [array.tobytes(), array[::2].tobytes()]


class Quantity(np.ndarray):
    unit = "m"


@pytest.mark.parametrize(
    ("array", "mend"),
    [
        (np.array([object()]), "value.tolist()"),
        (np.array([(1, None)], [("a", "i4"), ("b", "O")]), "value.tolist()"),
        (np.ma.masked_array([1, 2], [True, False]), "numpy.asarray(value)"),
        (np.zeros(3).view(Quantity), "numpy.asarray(value)"),
        (np.zeros(3, "V0"), "shape"),
        (np.zeros(1, [(f"field number {i} of a wide table", "i1") for i in range(3000)]), "64 KiB"),
        (np.zeros(1, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]}), "standard dtype"),
    ],
)
def test_an_array_that_is_more_than_bytes_is_refused_with_its_path(codec, array, mend):
    with pytest.raises(EncodeError) as caught:
        codec.encode_parts({"rows": [1, {"data": array}]})
    assert caught.value.path == 'msg["rows"][1]["data"]'
    assert caught.value.type_name.startswith("numpy.") or "Quantity" in caught.value.type_name
    assert mend in str(caught.value)


def test_a_dtype_with_metadata_is_sent_without_a_warning(codec):
    array = np.zeros(3, np.dtype([("a", "i4")], metadata={"unit": "m"}))
    assert_same(through(codec, array), array)


def test_a_dtype_nested_too_deep_is_refused(codec):
    dtype = np.dtype("i4")
    for _ in range(limits.MAX_DTYPE_DEPTH + 2):
        dtype = np.dtype([("in", dtype)])
    with pytest.raises(EncodeError, match="dtype"):
        codec.encode(np.zeros(1, dtype))


# Hostile descriptions


def ext(data, code=EXT_ARRAY):
    return ext_header(code, len(data)) + data


def description(dtype, shape=(), *, order=0, offset=None, dimensions=None, payload=b""):
    kind = dtype if isinstance(dtype, bytes) else msgpack.packb(dtype)
    dimensions = len(shape) if dimensions is None else dimensions
    length = 4 + 8 * len(shape) + 2 + len(kind)
    head = struct.pack(">HBB", length if offset is None else offset, order, dimensions)
    return head + struct.pack(f">{len(shape)}Q", *shape) + struct.pack(">H", len(kind)) + kind + payload


def test_the_description_is_as_documented(codec):
    assert codec.decode(ext(description("<i2", (2,), payload=b"\1\0\2\0"))).tolist() == [1, 2]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        description("|O", (1,), payload=bytes(8)),
        description("O", (1,), payload=bytes(8)),
        description([["a", "|O"]], (1,), payload=bytes(8)),
        description("i4,(1000000,1000000)f8", (1,)),
        description("<i2", (2,), payload=b"\1\0\2"),
        description("<i2", (2,), payload=b"\1\0\2\0\3"),
        description("<i2", (1 << 63, 1 << 63, 4), payload=bytes(8)),
        description("<i2", (0, (1 << 64) - 1)),
        description("|V0", (1 << 60,)),
        description("<U0", (2,)),
        description("<U9999999999", (1,)),
        description("<M8[99x]", (1,), payload=bytes(8)),
        description("<i99", (1,), payload=bytes(8)),
        description("<i2", (1,), order=2, payload=bytes(2)),
        description("<i2", (1,), offset=9999, payload=bytes(2)),
        description("<i2", (1,), offset=0, payload=bytes(2)),
        description("<i2", (1,), dimensions=255, payload=bytes(2)),
        description("<i2", (1,) * 65, payload=bytes(2)),
        description(b"\xc1", (1,)),
        description(b"", (1,)),
        description(None, (1,)),
        description([], (2,)),
        description([["a"]], (1,)),
        description([[1, "<i2"]], (1,), payload=bytes(2)),
        description([["a", "<i2"], ["a", "<i2"]], (1,), payload=bytes(4)),
        description([["a", "<i2", [1 << 62, 1 << 62]]], (1,)),
        description([["a", "<i2", "x"]], (1,)),
        description([["a", "<i2", [1.5]]], (1,)),
        description([["a", {"names": 1}]], (1,)),
        description(b"\x91\x92\xa1a" * 300 + b"\xa3<i2", (1,)),
    ],
)
def test_a_hostile_array_is_a_decode_error(codec, data):
    for code in (EXT_ARRAY, 84):
        with pytest.raises(DecodeError, match="array"):
            codec.decode(b"\x91" + ext(data, code))


@by_examples
@given(st.binary(max_size=80))
def test_a_random_description_is_an_array_or_a_decode_error(data):
    value_or_error(ext(data))


@by_examples
@given(st.data())
def test_a_damaged_frame_with_arrays_is_a_value_or_a_decode_error(data):
    message = {
        "a": np.arange(LARGE // 8 + 3),
        "b": [np.zeros(3, STRUCTURED), bytes(LARGE)],
        "c": np.arange(LARGE),
    }
    codec = get_codec("msgpack")
    frame = bytearray(joined(codec.encode_parts(message)))
    interesting = st.integers(0, 140) | st.integers(0, len(frame) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(interesting)] = data.draw(st.integers(0, 255))
    value_or_error(bytes(frame))
    value_or_error(bytes(frame[: data.draw(st.integers(0, len(frame)))]))


def indexed(starts, message, size=None):
    body = struct.pack(f">{len(starts)}Q", *starts)
    return b"\x92" + ext_header(EXT_INDEX, len(body) if size is None else size) + body + message


GOOD = ext(description("<i2", (1,), payload=b"\7\0"))


def test_the_index_is_as_documented(codec):
    assert codec.decode(indexed([15], GOOD)).tolist() == [7]
    assert [part.tolist() for part in codec.decode(indexed([24, 24 + len(GOOD)], b"\x92" + GOOD + GOOD))] == [
        [7],
        [7],
    ]
    assert codec.decode(indexed([], b"\xa2ok")) == "ok"


@pytest.mark.parametrize(
    "frame",
    [
        indexed([0], GOOD),
        indexed([14], GOOD),
        indexed([16], GOOD),
        indexed([15 + len(GOOD)], GOOD),
        indexed([(1 << 64) - 1], GOOD),
        indexed([15], GOOD, size=7),
        indexed([15], GOOD, size=1 << 20),
        indexed([15], GOOD[:-1]),
        indexed([15], ext(description("<i2", (1,), payload=b"\7\0"), code=EXT_HOLE)),
        indexed([23, 23], GOOD),
        indexed([23 + len(GOOD), 23], GOOD + GOOD),
        indexed([], b""),
        indexed([], b"\x01\x02"),
        indexed([16], b"\x81" + GOOD + b"\x01"),
    ],
)
def test_a_hostile_index_is_a_decode_error(codec, frame):
    with pytest.raises(DecodeError):
        codec.decode(frame)


def test_a_hole_that_nobody_left_is_just_a_foreign_ext(codec):
    hole = b"\xd6" + bytes((EXT_HOLE,)) + b"\0\0\0\1"
    assert codec.decode(hole) == msgpack.ExtType(EXT_HOLE, b"\0\0\0\1")
    back = codec.decode(indexed([17], b"\x92\x01" + GOOD))
    assert back[1].tolist() == [7]
    assert codec.decode(indexed([16], b"\x92" + GOOD + hole))[1] == msgpack.ExtType(EXT_HOLE, b"\0\0\0\1")


# Without numpy


def test_a_reader_without_numpy_learns_what_to_install():
    frame = joined(get_codec("msgpack").encode_parts([np.arange(3)]))
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from shmbus.codec import get_codec\nfrom shmbus.errors import DecodeError\n"
        f"c = get_codec('msgpack')\nassert c.decode(c.encode([1, (2,)])) == [1, [2]]\n"
        f"try: c.decode({frame!r})\nexcept DecodeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install shmbus[numpy]" in done.stdout


def test_a_numpy_that_is_still_being_imported_is_not_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", type(sys)("numpy"))
    assert not codec_numpy.is_array([1])
