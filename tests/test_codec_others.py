"""The raw, pickle and msgspec codecs."""

import array
import dataclasses
import pickle
import struct
import subprocess
import sys
from datetime import UTC, datetime

import msgpack
import numpy as np
import pytest
from codec_help import LARGE, by_examples, joined, through
from hypothesis import given
from hypothesis import strategies as st

from shmbus.codec import get_codec
from shmbus.errors import DecodeError, EncodeError, Refused

msgspec = pytest.importorskip("msgspec")


# raw


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abcdef")[::2],
        memoryview(bytes(16)).cast("I"),
        array.array("d", [1.5, 2.5]),
        np.arange(6).reshape(2, 3).T,
        bytes(1 << 16),
    ],
)
def test_raw_carries_the_bytes_of_anything_bytes_like(data):
    codec = get_codec("raw")
    assert through(codec, data) == memoryview(data).tobytes()
    assert len(codec.encode(data)) == memoryview(data).nbytes


def test_raw_copies_nothing():
    data, room = bytes(LARGE), bytearray(LARGE)
    codec = get_codec("raw")
    assert codec.encode(data) is data
    assert codec.encode(room).obj is room
    assert codec.decode(data) is data


@pytest.mark.parametrize(
    ("message", "mend"), [("text", "value.encode()"), (None, "bytes"), ([b"a"], "another codec")]
)
def test_raw_refuses_what_is_not_bytes_like(message, mend):
    with pytest.raises(EncodeError, match="bytes-like") as caught:
        get_codec("raw").encode_parts(message)
    assert mend in str(caught.value)
    assert caught.value.path == "msg"
    assert caught.value.type_name == type(message).__name__


# pickle


@dataclasses.dataclass
class Job:
    name: str
    parts: list


class Stubborn:
    def __reduce__(self):
        raise RuntimeError("I stay here")


def test_pickle_carries_any_object():
    job = Job("a", [{1, 2}, (3, 4), 2**100, 1j])
    codec = get_codec("pickle")
    assert through(codec, job) == job
    assert codec.encode(job)[:2] == b"\x80\x05"
    loop = []
    loop.append(loop)
    back = through(codec, loop)
    assert back[0] is back


def test_pickle_lays_large_arrays_beside_and_views_them_on_arrival():
    codec = get_codec("pickle")
    arrays = [np.arange(LARGE), np.arange(3), np.ones((100, 90), order="F"), np.arange(4 * LARGE)[::2]]
    parts = codec.encode_parts({"job": Job("a", arrays)})
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), arrays[0]) for part in parts if len(part))
    frame = joined(parts)
    back = codec.decode(frame)["job"].parts
    whole = np.frombuffer(frame, np.uint8)
    for sent, arrived in zip(arrays, back, strict=True):
        assert np.array_equal(sent, arrived)
        assert arrived.flags.aligned
    assert [np.shares_memory(arrived, whole) for arrived in back] == [True, False, True, False]
    assert not back[0].flags.writeable


@pytest.mark.parametrize(
    ("message", "path", "reason"),
    [
        ([1, {"f": lambda: 0}], 'msg[1]["f"]', "pickle"),
        (Job("a", [1, Stubborn()]), "msg.parts[1]", "I stay here"),
        (Stubborn(), "msg", "I stay here"),
        ({"lock": (sys.stdout.buffer,)}, 'msg["lock"][0]', "pickle"),
    ],
)
def test_pickle_names_the_part_that_it_cannot_take(message, path, reason):
    with pytest.raises(EncodeError, match=reason) as caught:
        get_codec("pickle").encode_parts(message)
    assert caught.value.path == path


def test_pickle_explains_a_fault_inside_of_a_cycle():
    loop = {"f": lambda: 0}
    loop["again"] = [loop]
    with pytest.raises(EncodeError) as caught:
        get_codec("pickle").encode([loop])
    assert caught.value.path == 'msg[0]["f"]'


HEAD = struct.Struct(">4sI")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x80",
        b"hello",
        pickle.dumps([1, 2, 3], 5)[:-1],
        b"\x80\x05cnowhere\nnothing\n.",
        b"SBP5",
        HEAD.pack(b"SBP5", 0),
        HEAD.pack(b"SBP5", 1),
        HEAD.pack(b"SBP5", (1 << 32) - 1) + bytes(64),
        HEAD.pack(b"SBP5", 0) + struct.pack(">Q", 1 << 63) + b"N.",
        HEAD.pack(b"SBP5", 1) + struct.pack(">QQ", 2, 99) + b"N.",
    ],
)
def test_a_frame_that_is_no_pickle_is_a_decode_error(frame):
    with pytest.raises(DecodeError, match="pickle codec"):
        get_codec("pickle").decode(frame)


def test_the_frame_of_a_pickle_with_buffers_is_as_documented():
    text = pickle.dumps(np.arange(LARGE, dtype=np.uint8), 5, buffer_callback=[].append)
    head = HEAD.pack(b"SBP5", 1) + struct.pack(">QQ", len(text), LARGE)
    gap = bytes(-(len(head) + len(text)) % 16)
    payload = bytes(range(256)) * (LARGE // 256)
    assert get_codec("pickle").decode(head + text + gap + payload).tobytes() == payload


# msgspec


class Tick(msgspec.Struct):
    symbol: str
    price: float
    tags: list[object] = []  # noqa: RUF012 - a Struct copies it


def test_msgspec_carries_typed_messages():
    tick = Tick("A", 2.5, [1])
    assert through(get_codec("msgspec", message_type=Tick), tick) == tick
    assert through(get_codec("msgspec"), tick) == {"symbol": "A", "price": 2.5, "tags": [1]}
    assert through(get_codec("msgspec"), datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("size", [0, 255, 256, LARGE - 1, LARGE, 65535, 65536])
def test_bytes_are_the_same_frame_in_msgspec_and_in_msgpack(size):
    data = bytes(size)
    frames = {joined(get_codec(name).encode_parts(data)) for name in ("msgspec", "msgpack")}
    assert frames == {msgpack.packb(data)}
    assert get_codec("msgspec").decode(frames.pop()) == data


def test_msgspec_does_not_copy_large_bytes():
    data = bytes(LARGE)
    assert get_codec("msgspec").encode_parts(data)[1] is data


@pytest.mark.parametrize(
    ("message", "path", "type_name"),
    [
        ([1, {"a": object()}], 'msg[1]["a"]', "object"),
        (Tick("A", 2.5, [1, 2**70]), "msg.tags[1]", "int"),
        (["\ud800"], "msg[0]", "str"),
    ],
)
def test_msgspec_names_the_part_that_it_cannot_take(message, path, type_name):
    with pytest.raises(EncodeError) as caught:
        get_codec("msgspec").encode_parts(message)
    assert (caught.value.path, caught.value.type_name) == (path, type_name)


def test_msgspec_says_which_part_of_a_message_has_another_type():
    codec = get_codec("msgspec", message_type=Tick)
    with pytest.raises(DecodeError, match=r"\$\.price"):
        codec.decode(msgpack.packb({"symbol": "A", "price": "high"}))


@pytest.mark.parametrize(
    ("frame", "offset"),
    [(b"", 0), (b"\x91\xc1", 1), (b"\x01\x02", 1), (b"\x91" * 100_000, 1024), (b"\xdd\xff\xff\xff\xff", 0)],
)
def test_a_frame_that_is_no_message_is_a_decode_error_of_msgspec_too(frame, offset):
    with pytest.raises(DecodeError, match="msgspec codec") as caught:
        get_codec("msgspec").decode(frame)
    assert caught.value.offset == offset


@by_examples
@given(st.binary(max_size=100))
def test_random_bytes_are_a_value_or_a_decode_error_in_every_safe_codec(frame):
    for codec in (get_codec("msgspec"), get_codec("msgspec", message_type=Tick), get_codec("raw")):
        try:
            codec.decode(frame)
        except DecodeError:
            continue


def test_without_msgspec_the_codec_is_refused_with_what_to_install():
    code = (
        "import sys; sys.modules['msgspec'] = None\n"
        "from shmbus.codec import get_codec\nfrom shmbus.errors import Refused\n"
        "try: get_codec('msgspec')\nexcept Refused as error: print(error.setting, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("codec ")
    assert "pip install shmbus[msgspec]" in done.stdout


@pytest.mark.parametrize("name", ["msgpack", "raw", "pickle"])
def test_only_msgspec_has_message_types(name):
    with pytest.raises(Refused, match="message_type"):
        get_codec(name, message_type=Tick)
