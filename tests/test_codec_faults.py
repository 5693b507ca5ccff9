"""What the msgpack codec does with what it cannot do: it names the part, the place and the way out."""

import collections
import dataclasses
import decimal
import enum
import pathlib
import re
import uuid
from datetime import date, datetime, timedelta

import pytest
from codec_help import LARGE, by_examples, joined, messages, through, value_or_error
from hypothesis import example, given
from hypothesis import strategies as st

from shmbus import limits
from shmbus.codec import get_codec
from shmbus.errors import DecodeError, EncodeError

Point = collections.namedtuple("Point", "x y")


@pytest.fixture
def codec():
    return get_codec("msgpack")


def refusal(codec, message):
    with pytest.raises(EncodeError) as caught:
        codec.encode_parts(message)
    assert str(caught.value).startswith(caught.value.path + ": " + caught.value.type_name)
    assert "msgpack cannot encode it" not in str(caught.value)  # the words for want of a rule in codec_mend
    return caught.value


# What cannot be encoded


@dataclasses.dataclass
class Reading:
    value: float


def cyclic_list():
    loop = [1]
    loop.append({"again": loop})
    return loop


def nested(depth, wrap=lambda inner: [inner]):
    message = 0
    for _ in range(depth):
        message = wrap(message)
    return message


@pytest.mark.parametrize(
    ("message", "path", "type_name", "mend"),
    [
        ({"a": [1, 2, 3, {4}]}, 'msg["a"][3]', "set", "list(value)"),
        ({1}, "msg", "set", "list(value)"),
        ([frozenset()], "msg[0]", "frozenset", "list(value)"),
        ((1, {5: {2: 2**70}}), "msg[1][5][2]", "int", "71 bits"),
        ([-(2**63) - 1], "msg[0]", "int", "-2**63"),
        ([10**5000], "msg[0]", "int", "bits"),
        ({"t": datetime(2026, 1, 1)}, 'msg["t"]', "datetime.datetime", "astimezone()"),
        ([date(2026, 1, 1)], "msg[0]", "datetime.date", "isoformat()"),
        ([timedelta(1)], "msg[0]", "datetime.timedelta", "total_seconds()"),
        ({"s": ["ok", "bad \udc80"]}, 'msg["s"][1]', "str", "index 4"),
        ({"\ud800": 1}, r"msg['\ud800']", "str", "surrogate"),
        ({"a": {(1, 2): 3}}, 'msg["a"][(1, 2)]', "tuple", "[key, value] pairs"),
        ({"a": [{(): 3}]}, 'msg["a"][0][()]', "tuple", "pairs"),
        ([{Point(1, 2): 3}], "msg[0][Point(x=1, y=2)]", "tuple", "pairs"),
        ({frozenset(): 3}, "msg[frozenset()]", "frozenset", "list(value)"),
        ({2**64: 3}, "msg[18446744073709551616]", "int", "65 bits"),
        ([1j], "msg[0]", "complex", "value.real"),
        ([decimal.Decimal(1)], "msg[0]", "decimal.Decimal", "str(value)"),
        ([uuid.UUID(int=1)], "msg[0]", "uuid.UUID", "value.bytes"),
        ([pathlib.Path("/")], "msg[0]", "pathlib.PosixPath", "str(value)"),
        ([range(3)], "msg[0]", "range", "list(value)"),
        ([iter([1])], "msg[0]", "list_iterator", "list(value)"),
        ([ValueError("x")], "msg[0]", "ValueError", "str(value)"),
        ([Reading(1.0)], "msg[0]", "test_codec.Reading", "dataclasses.asdict"),
        ([enum.Enum("E", "A").A], "msg[0]", "test_codec.E", "value.value"),
        ([object()], "msg[0]", "object", 'codec="pickle"'),
        ([len], "msg[0]", "builtin_function_or_method", 'codec="pickle"'),
        ([Reading], "msg[0]", "type", 'codec="pickle"'),
        (cyclic_list(), 'msg[1]["again"]', "list", "contains itself"),
        ([{'quo"te': {1}}], "msg[0]['quo\"te']", "set", "list"),
    ],
)
def test_what_cannot_be_encoded_is_named_with_its_path_and_how_to_mend_it(
    codec, message, path, type_name, mend
):
    error = refusal(codec, message)
    assert error.path == path
    assert error.type_name.split(".")[-1] in (type_name.split(".")[-1], "Point")
    assert mend in str(error)
    # In a message with a large buffer, which takes another way, it is the same.
    beside = refusal(codec, {"large": bytes(LARGE), "part": message})
    assert beside.path == 'msg["part"]' + path.removeprefix("msg")
    assert through(codec, {"still": "works"}) == {"still": "works"}


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}])
def test_a_message_can_be_nested_up_to_the_limit_and_no_deeper(codec, wrap):
    depth = limits.MESSAGE_DEPTH
    back = through(codec, nested(depth, wrap))
    for _ in range(depth):
        back = back["k"] if isinstance(back, dict) else back[0]
    assert back == 0
    error = refusal(codec, nested(depth + 1, wrap))
    assert f"more than {depth} deep" in str(error)
    assert len(str(error)) < 300
    refusal(codec, nested(100_000, wrap))


def test_the_way_to_a_fault_is_found_once_however_often_a_part_is_shared(codec):
    part = [1]
    for _ in range(200):
        part = [part, part]
    from shmbus.codec_faults import find_fault

    assert find_fault([part, {1}], lambda _: None, lambda _: None) is None
    error = find_fault([part, 2**70], lambda it: "is large" if it == 2**70 else None, lambda _: None)
    assert error.path == "msg[1]"


def test_a_failed_message_leaves_nothing_behind_in_the_next(codec):
    for _ in range(3):
        refusal(codec, [1, 2, bytes(100), {3}])
        assert through(codec, ["next"]) == ["next"]


# What cannot be decoded


@by_examples
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x92\xc9\x00\x00\x00\x08\x55" + bytes(8) + b"\x90")
def test_random_bytes_are_a_value_or_a_decode_error(frame):
    value_or_error(frame)


@by_examples
@given(messages, st.data())
def test_a_damaged_frame_is_a_value_or_a_decode_error(message, data):
    frame = bytearray(joined(get_codec("msgpack").encode_parts(message)))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    value_or_error(bytes(frame))


@by_examples
@given(messages)
def test_a_frame_cut_short_or_followed_by_more_is_refused_with_the_place(message):
    frame = joined(get_codec("msgpack").encode_parts(message))
    for cut in {len(frame) - 1, len(frame) // 2}:
        with pytest.raises(DecodeError) as caught:
            get_codec("msgpack").decode(frame[:cut])
        assert caught.value.offset is not None
    with pytest.raises(DecodeError, match="follow a whole message") as caught:
        get_codec("msgpack").decode(frame + b"\x00")
    assert caught.value.offset == len(frame)


@pytest.mark.parametrize(
    ("frame", "offset", "reason"),
    [
        (b"", 0, "it ends too early"),
        (b"\x93\x01\x02", 0, "a list of 3 elements begins there, and 2 bytes follow"),
        (b"\x93\x01\xc0\xcc", 3, "a number of 1 bytes begins there, and 0 follow"),
        (b"\x91\xc1", 1, "0xc1"),
        (b"\x92\x01\xa2a\xff", 4, "not UTF-8"),
        (b"\xdd\xff\xff\xff\xff", 0, "a list of 4294967295 elements"),
        (b"\xdf\x7f\xff\xff\xff\x00", 0, "a map of"),
        (b"\x91\xc6\xff\xff\xff\xff\x00", 1, "a bin of 4294967295 bytes begins there, and 1 follow"),
        (b"\x91\xdb\xff\xff\xff\xff", 1, "a str of"),
        (b"\x91\xc9\xff\xff\xff\xff\x01", 1, "an? ext of"),
        (b"\xc5\x01", 0, "length is cut off"),
        (b"\xcb\x00", 0, "a number"),
        (b"\x81\x90\x01", 1, "a key of a map is a list"),
        (b"\x81\x80\x01", 1, "a key of a map is a map"),
        (b"\x01\x02", 1, "1 more bytes follow"),
        (b"\x91" * 1025 + b"\x00", 1024, "nests more than 1024 deep"),
        (b"\x91" * 100_000, 1024, "nests more than 1024 deep"),
        (b"\xd6\xff" + b"\xff" * 4, None, None),
        (b"\xc7\x0c\xff" + b"\xff" * 12, None, "nanoseconds"),
        (b"\xc7\x0c\xff\x00\x00\x00\x00\x7f" + b"\xff" * 7, None, "."),
        (b"\xc7\x03\xff\x00\x00\x00", None, "timestamp"),
        (b"\xd4\x80\x00", None, "."),
    ],
)
def test_a_frame_that_is_no_message_says_where_it_stops_being_one(codec, frame, offset, reason):
    if reason is None:
        codec.decode(frame)
        return
    with pytest.raises(DecodeError, match=reason) as caught:
        codec.decode(frame)
    assert caught.value.offset == offset
    assert f"these {len(frame)} bytes" in str(caught.value)


def test_a_small_frame_cannot_ask_for_much_memory(codec):
    import tracemalloc

    declares = b"".join(b"\xdd" + (4000).to_bytes(4, "big") for _ in range(1000)) + bytes(4000)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            codec.decode(declares)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 << 20


def test_messages_of_errors_have_no_machine_words(codec):
    assert not re.search(r"0x[0-9a-f]{6,}", str(refusal(codec, [object()])))
