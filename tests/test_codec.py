"""The msgpack codec: what goes in comes out, what cannot is explained, and no frame hurts its reader."""

import collections
import enum
import math
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone

import msgpack
import pytest
from codec_help import LARGE, by_examples, joined, messages, through
from hypothesis import given

from shmbus.codec import CODEC_NUMBERS, get_codec
from shmbus.errors import DecodeError, Refused

LARGE_STEPS = [0, 1, 31, 32, 255, 256, LARGE - 1, LARGE, LARGE + 1, 65535, 65536, 65537]
INT_EDGES = [
    edge + step
    for power in (5, 7, 8, 15, 16, 31, 32, 63)
    for edge in (1 << power, -(1 << power))
    for step in (-1, 0, 1)
    if edge + step >= -(1 << 63)
]


@pytest.fixture
def codec():
    return get_codec("msgpack")


# Round trips


@by_examples
@given(messages)
def test_any_message_of_plain_values_comes_back_equal(message):
    codec = get_codec("msgpack")
    assert through(codec, message) == message
    assert through(codec, message) == message  # and again: the codec remembers what messages were like


@by_examples
@given(messages)
def test_any_frame_without_arrays_is_one_document_that_another_reader_can_read(message):
    frame = joined(get_codec("msgpack").encode_parts(message))
    assert msgpack.unpackb(frame, timestamp=3, strict_map_key=False) == message


@pytest.mark.parametrize("number", [*INT_EDGES, 0, (1 << 64) - 2, (1 << 64) - 1])
def test_whole_numbers_come_back_at_the_edges_of_their_widths(codec, number):
    back = through(codec, [number, {number: number}])
    assert back == [number, {number: number}]


@pytest.mark.parametrize("number", [0.0, -0.0, 1e-320, 1.7976931348623157e308, math.inf, -math.inf, 2.5])
def test_floats_come_back_bit_by_bit(codec, number):
    assert through(codec, number).hex() == number.hex()
    assert math.isnan(through(codec, math.nan))


@pytest.mark.parametrize("size", LARGE_STEPS)
def test_bytes_are_plain_msgpack_bin_at_every_size(codec, size):
    message = bytes(index & 255 for index in range(size))
    frame = joined(codec.encode_parts(message))
    assert frame == msgpack.packb(message)
    assert codec.decode(frame) == message
    assert joined(codec.encode_parts([message, {"k": message}])) == msgpack.packb([message, {"k": message}])


@pytest.mark.parametrize("size", [*LARGE_STEPS, 16])
def test_text_comes_back_at_every_size(codec, size):
    for char in ("x", "é", "🚌"):
        assert through(codec, char * size) == char * size


@pytest.mark.parametrize("size", [0, 15, 16, 17, 65535, 65536])
def test_containers_come_back_at_the_edges_of_their_headers(codec, size):
    assert through(codec, list(range(size))) == list(range(size))
    assert through(codec, dict.fromkeys(range(size))) == dict.fromkeys(range(size))


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
        datetime(2106, 2, 7, 6, 28, 16, 1, tzinfo=UTC),
        datetime(2514, 5, 30, 1, 53, 4, tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(2026, 3, 29, 2, 30, 0, 7, tzinfo=timezone(timedelta(hours=-9, minutes=-30))),
    ],
)
def test_aware_datetimes_come_back_as_the_same_moment_in_utc(codec, moment):
    back = through(codec, {"at": moment})["at"]
    assert back == moment
    assert back.tzinfo is UTC


def test_a_datetime_before_the_first_of_utc_is_a_decode_error_and_no_crash(codec):
    frame = codec.encode(datetime.min.replace(tzinfo=timezone(timedelta(hours=5))))
    with pytest.raises(DecodeError, match="range"):
        codec.decode(frame)


Point = collections.namedtuple("Point", "x y")


class Colour(enum.StrEnum):
    RED = "red"


class OldColour(str, enum.Enum):  # noqa: UP042 - the older way prints itself as OldColour.RED
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 7


class Quiet(float):
    def __repr__(self):
        return "quiet"


class Blob(bytes):
    pass


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ((1, (2, [3, ()])), [1, [2, [3, []]]]),
        ([(1, 2), {"a": (3,)}], [[1, 2], {"a": [3]}]),
        (Point(1, 2), [1, 2]),
        ([Point(1, 2)], [[1, 2]]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        ([Colour.RED, OldColour.RED, Level.HIGH, Quiet(2.5)], ["red", "red", 7, 2.5]),
        ({Colour.RED: Level.HIGH, Level.HIGH: 1}, {"red": 7, 7: 1}),
        (bytearray(b"abc"), b"abc"),
        ([bytearray(b"abc"), memoryview(b"abc"), Blob(b"abc")], [b"abc"] * 3),
        (Blob(b"x" * LARGE), b"x" * LARGE),
        ([Blob(b"x" * LARGE)], [b"x" * LARGE]),
        ({None: 1, True: 2, 2.5: 3, b"k": 4}, {None: 1, True: 2, 2.5: 3, b"k": 4}),
        ({datetime(2026, 1, 1, tzinfo=UTC): 1}, {datetime(2026, 1, 1, tzinfo=UTC): 1}),
    ],
)
def test_what_msgpack_has_no_word_for_arrives_as_the_nearest_plain_thing(codec, sent, arrives):
    back = through(codec, sent)
    assert back == arrives
    assert type(back) is type(arrives)
    if isinstance(back, list):
        assert [type(part) for part in back] == [type(part) for part in arrives]


def test_foreign_ext_types_pass_as_they_are(codec):
    message = [msgpack.ExtType(5, b"five"), {"k": msgpack.ExtType(127, b"")}]
    assert through(codec, message) == message


# Buffers


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, lambda data: memoryview(data), lambda data: memoryview(bytearray(data))]
)
def test_large_buffers_are_parts_themselves_and_never_copied(codec, kind):
    data = kind(b"x" * (1 << 20))
    for message in (data, {"id": 7, "frame": data}, [1, {"a": [data, 2]}]):
        for _ in range(2):  # looked for after packing, and then before
            parts = codec.encode_parts(message)
            assert any(
                part is data or getattr(part, "obj", None) is getattr(data, "obj", data) for part in parts
            )
            assert sum(len(part) for part in parts if part is not data and len(part) != 1 << 20) < 64


def test_many_large_buffers_in_one_message_come_back_in_their_order(codec):
    message = {"rows": [{"id": i, "data": bytes([i % 256]) * (LARGE + i)} for i in range(300)], "tail": "end"}
    assert through(codec, message) == message
    assert len(codec.encode_parts(message)) == 2 * 300 + 1


def test_a_message_is_not_changed_by_setting_its_buffers_aside(codec):
    inner = [bytes(LARGE), 1]
    message = {"a": inner, "b": inner}
    codec.encode_parts(message)
    codec.encode_parts(message)
    assert message["a"] is message["b"] is inner
    assert inner == [bytes(LARGE), 1]


def test_a_codec_forgets_large_buffers_when_messages_have_none_any_more(codec):
    codec.encode_parts({"a": bytes(LARGE)})
    codec.encode_parts([{"a": bytes(LARGE)}] * 100)
    for _ in range(40):
        assert through(codec, {"a": b"small"}) == {"a": b"small"}
    assert codec._look_first == 0


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abcdef")[::2],
        memoryview(b"abcdef")[::-1],
        memoryview(bytes(range(24))).cast("B", (2, 3, 4)),
        memoryview(bytes(range(16))).cast("I"),
        memoryview(bytes(range(256)) * 64)[::2],
        memoryview(bytes(8192)).cast("d"),
        memoryview(b""),
    ],
)
def test_memoryviews_of_any_layout_arrive_as_their_bytes(codec, view):
    assert through(codec, view) == view.tobytes()
    assert through(codec, {"a": [view]}) == {"a": [view.tobytes()]}
    assert through(codec, (view, 1)) == [view.tobytes(), 1]


def test_a_message_that_contains_the_marker_of_a_buffer_comes_back_too(codec):
    from shmbus.codec_msgpack import _HOLE, _MARK

    for message in (
        [_HOLE, bytes(LARGE)],
        {"a": _MARK, "b": bytes(LARGE), "c": _MARK * 3},
        [bytes(LARGE), memoryview(bytes(2 * LARGE))[::2], _MARK],
    ):
        expected = (
            [bytes(LARGE), bytes(LARGE), _MARK]
            if isinstance(message, list) and len(message) == 3
            else message
        )
        assert through(codec, message) == expected


# Several at once


def test_encoding_from_inside_of_encoding_does_not_mix_the_two(codec):
    inner_frames = []

    class Nosy(dict):
        def keys(self):
            inner_frames.append(codec.encode(["inner"]))
            return super().keys()

        def __iter__(self):
            inner_frames.append(codec.encode(["inner"]))
            return super().__iter__()

    assert codec.decode(codec.encode([1, Nosy(a=1), 2])) == [1, {"a": 1}, 2]
    assert all(codec.decode(frame) == ["inner"] for frame in inner_frames)
    assert inner_frames


def test_threads_share_a_codec_without_sharing_messages(codec):
    wrong = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(mine):
        for turn in range(150):
            message = [mine, (turn, Point(mine, turn)), [bytes([mine]) * (LARGE if turn % 3 else 3)]]
            back = codec.decode(joined(codec.encode_parts(message)))
            if back != [mine, [turn, [mine, turn]], message[2]]:
                wrong.append(back)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


# The codecs as such


def test_codecs_are_chosen_by_name_and_their_numbers_never_change():
    assert CODEC_NUMBERS == {"raw": 0, "msgpack": 1, "pickle": 2, "msgspec": 3}
    for name, number in CODEC_NUMBERS.items():
        codec = get_codec(name)
        assert (codec.name, codec.number) == (name, number)


@pytest.mark.parametrize("name", ["json", "", "PICKLE"])
def test_an_unknown_codec_is_refused_with_the_choices(name):
    with pytest.raises(Refused, match="'msgpack'") as caught:
        get_codec(name)
    assert caught.value.setting == "codec"


def test_importing_the_codecs_imports_no_numpy_and_no_msgspec():
    code = (
        "import sys; from shmbus.codec import get_codec; c = get_codec('msgpack');"
        "c.decode(c.encode([1, (2,), b'x' * 5000]));"
        "print({'numpy', 'msgspec', 'click', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
