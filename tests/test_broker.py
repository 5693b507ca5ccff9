"""The broker: whom it lets in, and what it refuses."""

import contextlib
import os
import resource
import select
import socket
import struct

import pytest
from broker_help import (
    Bare,
    Running,
    expect_descriptors,
    forked,
    let_others_through,
    open_descriptors,
    repeat,
    status_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmbus import control, limits
from shmbus.errors import Refused
from shmbus.settings import ChannelSettings

SMALL = ChannelSettings(capacity_bytes=4096)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "b.sock")


@pytest.fixture
def bus(path):
    with Running(path) as running:
        yield running


# Who comes in -----------------------------------------------------------------------------------------------


def test_hello_is_answered_with_the_bus_and_its_broker(bus):
    with Bare(bus.path, hello=False) as client:
        reply = client.hello()
        assert reply.fields["bus"] == "bus"
        assert reply.fields["pid"] == os.getpid()
        assert reply.fields["embedded"] is False
        assert len(reply.fields["instance"]) == 16


def test_a_pidfd_of_another_process_is_refused(bus):
    pidfd = os.pidfd_open(os.getppid())
    with pytest.raises(Refused, match=f"of process {os.getppid()}, and process {os.getpid()} connected"):
        Bare(bus.path, pidfd=pidfd)
    os.close(pidfd)


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.open("/dev/null", os.O_RDONLY),
        lambda: os.open(f"/proc/{os.getpid()}", os.O_RDONLY),
        lambda: os.eventfd(0),
        lambda: os.epoll_create1(0) if hasattr(os, "epoll_create1") else os.memfd_create("x"),
    ],
)
def test_what_is_no_pidfd_is_refused(bus, make):
    fd = make()
    with pytest.raises(Refused, match="no pidfd"):
        Bare(bus.path, pidfd=fd)
    os.close(fd)


def test_a_role_that_does_not_exist_is_refused(bus):
    with pytest.raises(Refused, match=r"'king'.*client, worker"):
        Bare(bus.path, role="king")


def test_after_a_refused_hello_the_connection_is_over(bus):
    with Bare(bus.path, hello=False) as client:
        with pytest.raises(Refused):
            client.hello(role="king")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.post("list", {"after": ""})
            assert client.answer() is None


@needs_root
def test_another_user_is_not_let_in_whatever_the_mode_has_become(bus):
    os.chmod(bus.path, 0o777)
    answers, said = os.pipe()

    def enter():
        os.setuid(12345)
        try:
            Bare(bus.path)
        except Refused as error:
            os.write(said, str(error).encode())

    let_others_through(bus.path)
    assert status_of(forked(enter)) == 0
    os.close(said)
    with open(answers) as file:
        assert f"belongs to user {os.geteuid()}, and user 12345 is not let in" in file.read()


@needs_root
def test_another_user_is_let_in_where_the_mode_was_chosen_so(path):
    with Running(path, mode=0o666, open_to_others=True) as bus:
        let_others_through(path)

        def enter():
            os.setuid(12345)
            with Bare(bus.path) as client:
                client.open("jobs", SMALL)
                with pytest.raises(Refused, match="own user"):
                    client.ask("spawn", {"payload": b""}, [1])

        assert status_of(forked(enter)) == 0


def test_one_more_client_than_the_limit_is_refused_and_room_is_made_again(bus, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CLIENTS", 3)
    clients = [Bare(bus.path) for _ in range(3)]
    with pytest.raises(Refused, match=r"3 clients, the limit \(MAX_CLIENTS\)"):
        Bare(bus.path)
    clients.pop().close()
    # The end of a connection is seen when its turn comes; a refused attempt in between is no failure.
    for _ in range(1000):
        try:
            clients.append(Bare(bus.path))
            break
        except Refused:
            pass
    for client in clients:
        client.close()


def test_without_a_free_descriptor_a_client_is_told_so_and_the_broker_lives(bus):
    with Bare(bus.path) as early:
        latecomer = socket.socket(socket.AF_UNIX)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 1, before[1]))
        plugs = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    plugs.append(os.dup(0))
            latecomer.connect(bus.path)
            answer = latecomer.recv(4096)
            assert early.ask("list", {"after": ""}).fields["channels"] == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for fd in plugs:
                os.close(fd)
            latecomer.close()
    client = control.ClientConnection()
    client.receive(answer)
    with pytest.raises(Refused, match="limit of open files"):
        client.next_reply()
    Bare(bus.path).close()


# What is refused --------------------------------------------------------------------------------------------

HEADER = struct.Struct("<IBBH")
HOSTILE = {
    "huge": HEADER.pack(0xFFFFFFFF, 1, 0, 0),
    "another version": HEADER.pack(1, 99, 0, 0) + b"\x80",
    "no msgpack": HEADER.pack(3, 1, 0, 0) + b"abc",
    "deep": HEADER.pack(1004, 1, 0, 0) + b"\x81\xa1k" + b"\x91" * 1000 + b"\x00",
    "wide": HEADER.pack(0xFFFF + 6, 1, 0, 0) + b"\x81\xa1k\xdc\xff\xff" + b"\x90" * 0xFFFF,
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "descriptors missing": HEADER.pack(1, 1, 5, 0) + b"\x80",
    "unknown request": control.encode_frame({"request": "dance", "id": 2}),
    "wrong id": control.encode_frame({"request": "list", "id": 7, "after": ""}),
}


@pytest.mark.parametrize("greeted", [True, False], ids=["after hello", "before hello"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_client_that_breaks_the_protocol_is_told_why_and_no_other_is_hurt(bus, what, greeted):
    with Bare(bus.path) as other, Bare(bus.path, hello=greeted) as hostile:
        hostile.send(HOSTILE[what])
        with pytest.raises(Refused):
            hostile.answer()
        with contextlib.suppress(ConnectionResetError):
            assert hostile.socket.recv(1) == b""
        assert other.ask("list", {"after": ""}).fields["channels"] == []


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 3)), min_size=1, max_size=4))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_client_sends_no_other_is_hurt(bus, pieces):
    with Bare(bus.path) as other:
        with Bare(bus.path) as hostile, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for data, count in pieces:
                hostile.send(data, [0] * count)
        assert other.ask("list", {"after": ""}).fields["channels"] == []


def test_descriptors_that_nobody_asked_for_are_closed(bus):
    with Bare(bus.path) as other:
        before = open_descriptors()
        for count in (1, 8, 9, 253):
            with Bare(bus.path) as hostile:
                sent = [os.dup(0) for _ in range(count)]
                _, frame = hostile.connection.request("list", {"after": ""})
                socket.send_fds(hostile.socket, [frame], sent)
                for fd in sent:
                    os.close(fd)
                with pytest.raises(Refused, match="descriptors"):
                    repeat(hostile.answer)
                with contextlib.suppress(ConnectionResetError):
                    assert hostile.socket.recv(1) == b""
        expect_descriptors(other, before)


def test_descriptors_of_half_a_frame_are_closed(bus):
    with Bare(bus.path) as other:
        before = open_descriptors()
        with Bare(bus.path) as hostile:
            socket.send_fds(hostile.socket, [HEADER.pack(100, 1, 3, 0)], [0, 1, 2])
        expect_descriptors(other, before)


@pytest.mark.parametrize("greeted", [True, False], ids=["after hello", "before hello"])
def test_a_client_that_stops_in_the_middle_of_a_frame_is_refused_at_the_deadline(bus, greeted):
    with Bare(bus.path) as other:
        with Bare(bus.path, hello=greeted) as slow:
            bus.hurry(0.05)
            slow.send(b"\x10")
            assert other.ask("list", {"after": ""}).fields["channels"] == []
            with pytest.raises(Refused, match=r"not complete after 0\.05 seconds"):
                slow.answer()
        # Whoever is silent between two frames is left alone.
        assert other.ask("list", {"after": ""}).fields["channels"] == []


def test_a_connection_that_says_nothing_is_refused_at_the_deadline(path):
    with (
        Running(path, frame_seconds=0.05) as bus,
        Bare(bus.path, hello=False) as silent,
        pytest.raises(Refused, match="not complete"),
    ):
        silent.answer()


def test_a_byte_now_and_then_does_not_move_the_deadline(path):
    with Running(path, frame_seconds=0.2) as bus, Bare(bus.path, hello=False) as slow:
        _, frame = slow.connection.request("hello", {"role": "client", "pid": 1, "command": "x" * 60_000})
        bytes_left = iter(frame)

        def send_a_byte():
            slow.send(bytes([next(bytes_left)]))
            select.select([slow.socket], [], [], 0.01)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            repeat(send_a_byte)
        with pytest.raises(Refused, match="not complete"):
            slow.answer()


def test_a_client_that_takes_no_answers_loses_its_connection_and_no_other_waits(bus):
    with Bare(bus.path) as other, Bare(bus.path) as greedy:
        bus.hurry(0.1)

        def ask_for_more():
            greedy.post("stats", {"name": None})
            assert other.ask("list", {"after": ""}).fields["channels"] == []

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            repeat(ask_for_more)
