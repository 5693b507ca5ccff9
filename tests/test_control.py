"""The control protocol without any I/O: whole, byte by byte, and hostile."""

import struct
from dataclasses import dataclass
from typing import NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbus import control, limits
from shmbus.control import ClientConnection, FrameDecoder, ServerConnection, State, decode_body, encode_frame
from shmbus.control_frames import MAX_CONTAINERS
from shmbus.errors import (
    NoBroker,
    NoSpace,
    Refused,
    ShmbusError,
    TooLarge,
    WorkerFailed,
)
from shmbus.settings import Backing

HELLO = {"role": "client", "pid": 7, "command": "python"}
HEADER = struct.Struct("<IBBH")


def deeply(depth):
    """A body of so many levels, the map itself being the first."""
    inner = 0
    for _ in range(depth - 1):
        inner = [inner]
    return {"x": inner}


def raw_frame(packed, descriptors=0, version=control.VERSION, reserved=0):
    return HEADER.pack(len(packed), version, descriptors, reserved) + packed


def all_frames(decoder):
    return list(iter(decoder.next_frame, None))


def greeted():
    """Both ends of a connection after hello."""
    client, server = ClientConnection(), ServerConnection()
    _, frame = client.request("hello", HELLO)
    server.receive(frame, [3])
    request = server.next_request()
    client.receive(server.reply(request, {"bus": "b", "pid": 1, "embedded": False, "instance": b"i"}))
    assert client.next_reply().fields["bus"] == "b"
    return client, server


# Frames -----------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
bodies = st.dictionaries(st.text(), plain, max_size=4)


@given(st.lists(st.tuples(bodies, st.integers(0, 3)), max_size=4), st.data())
def test_frames_arrive_as_they_were_sent_however_the_bytes_are_cut(frames, data):
    decoder, came, numbers = FrameDecoder(), [], iter(range(1000))
    sent = []
    for body, count in frames:
        given_numbers = [next(numbers) for _ in range(count)]
        sent.append((body, tuple(given_numbers)))
        packed = encode_frame(body, count)
        # Descriptors come with the first byte of their frame, or with a later one of it.
        cuts = sorted(data.draw(st.lists(st.integers(1, len(packed)), max_size=3)))
        for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(packed)], strict=True)):
            decoder.feed(packed[start:end], given_numbers if index == 0 else ())
            while (frame := decoder.next_frame()) is not None:
                came.append((frame.body, frame.descriptors))
    assert came == sent
    assert not decoder.mid_frame
    assert decoder.take_descriptors() == []


def test_several_frames_fed_at_once_keep_their_own_descriptors():
    decoder = FrameDecoder()
    decoder.feed(encode_frame({"a": 1}) + encode_frame({"b": 2}, 2), [8, 9])
    assert decoder.next_frame().descriptors == ()
    assert decoder.next_frame().descriptors == (8, 9)
    assert decoder.next_frame() is None


@given(st.binary(max_size=200), st.lists(st.integers(0, 9), max_size=10))
def test_random_bytes_are_refused_or_ignored_and_never_anything_else(data, descriptors):
    decoder = FrameDecoder()
    decoder.feed(data, descriptors)
    handed = []
    try:
        while (frame := decoder.next_frame()) is not None:
            handed += frame.descriptors
    except Refused:
        pass
    assert handed + decoder.take_descriptors() == descriptors


@given(st.binary(max_size=300), st.integers(0, 9))
def test_a_frame_with_a_random_body_is_refused_or_read(packed, descriptors):
    decoder = FrameDecoder()
    decoder.feed(raw_frame(packed, descriptors), range(descriptors))
    try:
        frame = decoder.next_frame()
    except Refused:
        return
    assert isinstance(frame.body, dict)
    assert len(frame.descriptors) == descriptors


@given(st.data())
def test_one_flipped_byte_in_a_frame_never_does_more_than_refuse_it(data):
    frame = bytearray(
        encode_frame({"request": "open", "id": 1, "name": "x", "settings": {}, "create": True}, 1)
    )
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    server = ServerConnection()
    server.receive(bytes(frame), [5])
    try:
        request = server.next_request()
    except Refused:
        assert server.state is State.BROKEN
        assert server.take_descriptors() == [5]
    else:
        assert request is None  # now it is longer, and the rest never comes


@pytest.mark.parametrize(
    ("data", "descriptors", "why"),
    [
        (raw_frame(b"\x80", version=2), [], "version 2"),
        (raw_frame(b"\x80", reserved=1), [], "makes no sense"),
        (raw_frame(b"\x80", descriptors=9), [], "makes no sense"),
        (HEADER.pack(limits.MAX_FRAME_BYTES + 1, control.VERSION, 0, 0), [], "MAX_FRAME_BYTES"),
        (HEADER.pack(0xFFFFFFFF, control.VERSION, 0, 0), [], "MAX_FRAME_BYTES"),
        (raw_frame(b"\x80", descriptors=2), [5], "announces 2 descriptors, and 1 came"),
        (raw_frame(b"\x80\x80", descriptors=0)[:-1], [5], "1 descriptors came, and the frame announces 0"),
        (b"", [5], "no control frame announces"),
        (raw_frame(b"\x80") + b"", [5], "no control frame announces"),
        (raw_frame(b""), [], "no msgpack"),
        (raw_frame(b"\x80\x80"), [], "no msgpack"),
        (raw_frame(b"\xc1"), [], "no msgpack"),
        (raw_frame(b"\x90"), [], "a map"),
        (raw_frame(msgpack.packb({1: 2})), [], "no msgpack|keys"),
        (raw_frame(msgpack.packb({b"k": 2})), [], "keys"),
        (raw_frame(b"\x82\xa1k\x01\xa1k\x02"), [], "twice"),
        (raw_frame(b"\x81\xa1k\xa1\xff"), [], "no msgpack"),
        (raw_frame(msgpack.packb({"k": msgpack.ExtType(3, b"x")})), [], "extension 3"),
        (raw_frame(msgpack.packb({"k": msgpack.Timestamp(1)})), [], "cannot hold"),
        (raw_frame(b"\x81\xa1k\xdd\xff\xff\xff\xff"), [], "no msgpack"),
        (raw_frame(b"\xdf\xff\xff\xff\xff"), [], "no msgpack"),
        (raw_frame(b"\x81\xa1k" + b"\x91" * 1000 + b"\x00"), [], "MAX_CONTROL_DEPTH"),
        (raw_frame(b"\x81\xa1k" + b"\x91" * 100_000 + b"\x00"), [], "no msgpack"),
        (raw_frame(b"\x81\xa1k\xdc\xff\xff" + b"\x90" * 0xFFFF), [], "MAX_CONTAINERS"),
    ],
)
def test_a_frame_that_breaks_a_rule_is_refused_naming_the_rule(data, descriptors, why):
    decoder = FrameDecoder()
    decoder.feed(data, descriptors)
    with pytest.raises(Refused, match=why):
        all_frames(decoder)
    assert decoder.take_descriptors() == descriptors


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused_before_its_body_is_there(version):
    decoder = FrameDecoder()
    decoder.feed(HEADER.pack(1000, version, 0, 0))
    with pytest.raises(Refused, match=f"version {version} .* version {control.VERSION}"):
        decoder.next_frame()


def test_the_deepest_frame_is_read_and_one_level_more_is_refused():
    body = deeply(limits.MAX_CONTROL_DEPTH)
    assert decode_body(msgpack.packb(body)) == body
    with pytest.raises(Refused, match="MAX_CONTROL_DEPTH"):
        decode_body(msgpack.packb(deeply(limits.MAX_CONTROL_DEPTH + 1)))


def test_the_frame_with_the_most_parts_is_read_and_one_more_is_refused():
    body = {"x": [[]] * (MAX_CONTAINERS - 2)}
    assert decode_body(msgpack.packb(body)) == body
    with pytest.raises(Refused, match="MAX_CONTAINERS"):
        decode_body(msgpack.packb({"x": [[]] * (MAX_CONTAINERS - 1)}))


def test_the_longest_frame_is_read_and_a_byte_more_is_refused():
    overhead = len(msgpack.packb({"x": b"y" * 70_000})) - 70_000
    longest = {"x": bytes(limits.MAX_FRAME_BYTES - overhead)}
    decoder = FrameDecoder()
    decoder.feed(encode_frame(longest))
    assert decoder.next_frame().body == longest
    with pytest.raises(Refused, match="MAX_FRAME_BYTES"):
        encode_frame({"x": bytes(limits.MAX_FRAME_BYTES - overhead + 1)})


@pytest.mark.parametrize("value", [{1, 2}, object(), 1 << 64, -(1 << 63) - 1])
def test_what_msgpack_cannot_hold_is_refused_at_the_sender(value):
    with pytest.raises(Refused, match="cannot hold"):
        encode_frame({"x": value})


# Requests and replies ---------------------------------------------------------------------------------------


def test_the_state_table_names_every_request_and_only_those():
    named = {name for row in control.TRANSITIONS.values() for name in row}
    assert named == set(control.REQUESTS)
    assert set(control.TRANSITIONS) == set(State)


def example(kinds):
    values = {str: "x", int: 1, bool: True, bytes: b"x", dict: {}, list: [], type(None): None}
    return values[kinds[0]]


@pytest.mark.parametrize("name", [name for name in control.REQUESTS if name != "hello"])
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["byte by byte", "whole"])
def test_each_request_and_its_reply_arrive_as_the_table_says(name, step):
    client, server = greeted()
    shape = control.REQUESTS[name]
    fields = {field: example(kinds) for field, kinds in shape.fields.items()}
    answer = {field: example(kinds) for field, kinds in shape.reply.items()}

    request_id, frame = client.request(name, fields)
    came = list(range(shape.descriptors))
    for start in range(0, len(frame), step):
        assert server.next_request() is None
        server.receive(frame[start : start + step], came if start == 0 else ())
    request = server.next_request()
    assert (request.name, request.fields, request.descriptors) == (name, fields, tuple(came))
    assert client.state is server.state

    reply_frame = server.reply(request, answer)
    came = list(range(shape.reply_descriptors))
    for start in range(0, len(reply_frame), step):
        assert client.next_reply() is None
        client.receive(reply_frame[start : start + step], came if start == 0 else ())
    reply = client.next_reply()
    assert (reply.id, reply.request, reply.fields, reply.error) == (request_id, name, answer, None)
    assert reply.descriptors == tuple(came)
    assert client.waiting == 0


def test_requests_may_be_sent_before_the_first_is_answered():
    client, server = greeted()
    first, one = client.request("remove", {"name": "a"})
    second, two = client.request("stats", {"name": None})
    server.receive(one + two)
    requests = [server.next_request(), server.next_request()]
    assert [request.id for request in requests] == [first, second]
    client.receive(server.refuse(first, Refused("no")) + server.reply(requests[1], {"stats": {}}))
    assert client.next_reply().error.args == ("no",)
    assert client.next_reply().id == second


def test_nothing_is_allowed_before_hello():
    server = ServerConnection()
    server.receive(encode_frame({"request": "list", "id": 1, "after": ""}))
    with pytest.raises(Refused, match="hello comes first"):
        server.next_request()
    with pytest.raises(Refused, match="hello comes first"):
        ClientConnection().request("list", {"after": ""})


def test_hello_is_said_once():
    client, server = greeted()
    with pytest.raises(Refused, match="not allowed"):
        client.request("hello", HELLO)
    server.receive(encode_frame({"request": "hello", "id": 2, **HELLO}, 1), [4])
    with pytest.raises(Refused, match="not allowed"):
        server.next_request()
    assert server.take_descriptors() == [4]


def test_nothing_follows_shutdown():
    client, server = greeted()
    _, frame = client.request("shutdown", {})
    server.receive(frame)
    assert server.next_request().name == "shutdown"
    with pytest.raises(Refused, match="ending"):
        client.request("list", {"after": ""})


@pytest.mark.parametrize(
    ("body", "descriptors", "why"),
    [
        ({"request": "dance", "id": 2}, 0, "no request 'dance'"),
        ({"request": "d" * 1000, "id": 2}, 0, "no request"),
        ({"request": 5, "id": 2}, 0, "name and the next id"),
        ({"id": 2}, 0, "name and the next id"),
        ({"request": "list", "after": ""}, 0, "name and the next id"),
        ({"request": "list", "id": 1, "after": ""}, 0, "name and the next id"),
        ({"request": "list", "id": True, "after": ""}, 0, "name and the next id"),
        ({"request": "list", "id": 3, "after": ""}, 0, "name and the next id"),
        ({"request": "list", "id": 2}, 0, "lacks 'after'"),
        ({"request": "list", "id": 2, "after": 5}, 0, "'after' .* cannot be int"),
        ({"request": "list", "id": 2, "after": "", "before": ""}, 0, "has no 'before'"),
        ({"request": "list", "id": 2, "after": ""}, 1, "travels with 0 descriptors, and 1 came"),
        ({"request": "open", "id": 2, "name": "x", "settings": None, "create": 1}, 0, "'create' .* int"),
        ({"request": "spawn", "id": 2, "payload": b""}, 0, "travels with 1 descriptors, and 0 came"),
    ],
)
def test_a_request_that_the_table_does_not_know_breaks_the_connection_for_good(body, descriptors, why):
    _, server = greeted()
    server.receive(encode_frame(body, descriptors), range(descriptors))
    server.receive(encode_frame({"request": "list", "id": 2, "after": ""}))
    with pytest.raises(Refused, match=why):
        server.next_request()
    assert server.state is State.BROKEN
    assert server.next_request() is None
    assert server.take_descriptors() == list(range(descriptors))


def test_a_client_finds_its_own_mistake_before_anything_is_sent():
    client, _ = greeted()
    with pytest.raises(Refused, match="lacks 'name'"):
        client.request("remove", {})
    with pytest.raises(Refused, match="MAX_FRAME_BYTES"):
        client.request("spawn", {"payload": bytes(limits.MAX_FRAME_BYTES)})
    assert client.state is State.READY
    assert client.request("remove", {"name": "x"})[0] == 2


def test_reply_zero_refuses_the_connection_as_a_whole():
    client, server = greeted()
    client.request("list", {"after": ""})
    client.receive(server.refuse(0, Refused("go away")))
    with pytest.raises(Refused, match="go away"):
        client.next_reply()
    assert client.state is State.BROKEN


@pytest.mark.parametrize(
    "body",
    [{}, {"reply": 1}, {"reply": 3}, {"reply": 2}, {"reply": 2, "channels": [], "more": 1}, {"reply": 0}],
)
def test_a_reply_that_makes_no_sense_breaks_the_connection(body):
    client, _ = greeted()
    client.request("list", {"after": ""})
    client.receive(encode_frame(body))
    with pytest.raises(Refused):
        client.next_reply()
    assert client.state is State.BROKEN


def test_descriptors_of_a_reply_that_is_broken_can_still_be_closed():
    client, _ = greeted()
    client.request("list", {"after": ""})
    client.receive(encode_frame({"reply": 2, "channels": [], "more": False}, 2), [8, 9])
    with pytest.raises(Refused, match="2 came"):
        client.next_reply()
    assert client.take_descriptors() == [8, 9]


def test_a_frame_that_has_begun_is_known_to_be_unfinished():
    server = ServerConnection()
    assert not server.mid_frame
    server.receive(b"\x00")
    assert server.next_request() is None
    assert server.mid_frame


# Errors and values on the wire ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        Refused("no", setting="capacity"),
        NoSpace("full", needed_bytes=5),
        TooLarge("big", size_bytes=3, limit_bytes=2),
        NoBroker("gone", path="/x"),
        WorkerFailed("died", pid=5, exit_code=-9),
    ],
)
def test_an_error_arrives_with_its_type_text_and_details(error):
    wire = decode_body(encode_frame({"error": control.error_to_wire(error)})[HEADER.size :])["error"]
    came = control.error_from_wire(wire)
    assert type(came) is type(error)
    assert str(came) == str(error)
    assert vars(came) == vars(error)


def test_a_foreign_error_arrives_as_one_of_ours_with_its_type_in_the_text():
    came = control.error_from_wire(control.error_to_wire(OSError(24, "Too many open files")))
    assert type(came) is ShmbusError
    assert "OSError" in str(came)
    assert "Too many open files" in str(came)


@given(plain)
def test_whatever_an_error_on_the_wire_says_it_becomes_one_of_ours(wire):
    assert isinstance(control.error_from_wire(wire), ShmbusError)
    assert isinstance(control.error_from_wire({"type": wire, "text": wire, "details": wire}), ShmbusError)
    assert isinstance(
        control.error_from_wire({"type": "Refused", "details": {"nonsense": wire}}), ShmbusError
    )


@dataclass(frozen=True, slots=True)
class Someone:
    pid: int
    role: str


class Place(NamedTuple):
    folder: str


def test_statistics_are_made_plain_before_they_travel():
    value = {
        1: (Backing.SHM, Someone(5, "producer"), Place("x")),
        "big": 1 << 70,
        "set": {1},
        "other": object,
    }
    found = control.to_plain(value)
    assert decode_body(encode_frame(found)[HEADER.size :]) == found
    assert found["1"] == ["shm", {"pid": 5, "role": "producer"}, {"folder": "x"}]
    assert found["big"] == str(1 << 70)
    assert found["set"] == [1]
