"""The broker: whom it lets in, what it refuses, what it does about deaths, how it ends."""

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import threading

import msgpack
import pytest
from broker_help import (
    SEALS,
    Bare,
    FakeFactory,
    FakeMemory,
    Running,
    Someone,
    forked,
    offer_of,
    open_descriptors,
    region,
    status_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmbus import broker_channels, control, limits
from shmbus.broker_hold import ChannelList, Listed
from shmbus.control_io import start_ticks
from shmbus.errors import NoSpace, Refused, ShmbusError
from shmbus.settings import Backing, ChannelSettings

SMALL = ChannelSettings(capacity_bytes=4096)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "b.sock")


@pytest.fixture
def bus(path):
    with Running(path) as running:
        yield running


def expect_descriptors(client, wanted):
    """Wait until the descriptors are those: the end of a connection comes between answers to another."""
    for _ in range(10_000):
        client.ask("list", {"after": ""})
        if open_descriptors() == wanted:
            return
    raise AssertionError(
        f"left open: {[os.readlink(f'/proc/self/fd/{fd}') for fd in open_descriptors() - wanted]}"
    )


def repeat(step):
    while True:
        step()


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

    os.chmod(os.path.dirname(bus.path), 0o711)
    for folder in (
        os.path.dirname(os.path.dirname(bus.path)),
        os.path.dirname(os.path.dirname(os.path.dirname(bus.path))),
    ):
        os.chmod(folder, 0o711)
    assert status_of(forked(enter)) == 0
    os.close(said)
    with open(answers) as file:
        assert f"belongs to user {os.geteuid()}, and user 12345 is not let in" in file.read()


@needs_root
def test_another_user_is_let_in_where_the_mode_was_chosen_so(path):
    with Running(path, mode=0o666, open_to_others=True) as bus:
        folder = os.path.dirname(path)
        for _ in range(3):
            os.chmod(folder, 0o711)
            folder = os.path.dirname(folder)

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
def test_a_client_that_stops_in_the_middle_of_a_frame_is_refused_at_the_deadline(path, greeted):
    with Running(path, frame_seconds=0.05) as bus, Bare(bus.path) as other:
        with Bare(bus.path, hello=greeted) as slow:
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


def test_a_client_that_takes_no_answers_loses_its_connection_and_no_other_waits(path):
    with Running(path, frame_seconds=0.1) as bus, Bare(bus.path) as other, Bare(bus.path) as greedy:

        def ask_for_more():
            greedy.post("stats", {"name": None})
            assert other.ask("list", {"after": ""}).fields["channels"] == []

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            repeat(ask_for_more)


# Channels ---------------------------------------------------------------------------------------------------


def test_the_first_to_open_a_channel_makes_it_and_the_next_gets_the_same(bus):
    with Bare(bus.path) as one, Bare(bus.path) as two:
        made = one.open("jobs", SMALL)
        found = two.open("jobs")
        assert (made["made"], found["made"]) == (True, False)
        assert made["identity"] == found["identity"] == bus.factory.made[0].identity
        assert found["settings"] == SMALL.to_wire()
        assert len(bus.factory.made) == 1


def test_a_channel_opened_without_settings_is_made_with_the_defaults(bus):
    with Bare(bus.path) as client:
        assert client.open("jobs")["settings"] == ChannelSettings().to_wire()


def test_the_descriptors_of_a_channel_are_its_own_and_close_on_exec(bus):
    with Bare(bus.path) as client:
        reply = client.ask("open", {"name": "jobs", "settings": None, "create": True})
        for ours, its in zip(reply.descriptors, bus.factory.made[0].descriptors, strict=True):
            assert os.fstat(ours).st_ino == os.fstat(its).st_ino
            assert not os.get_inheritable(ours)
            os.close(ours)


def test_making_a_channel_hands_out_no_memory(bus):
    with Bare(bus.path) as client:
        reply = client.ask("make", {"name": "jobs", "settings": None, "create": True})
        assert reply.descriptors == ()
        assert reply.fields["made"]
        assert client.open("jobs")["identity"] == reply.fields["identity"]


def test_other_settings_are_refused_naming_each_with_both_values(bus):
    with Bare(bus.path) as client:
        client.open("jobs", SMALL)
        other = ChannelSettings(capacity_bytes=8192, groups=("a",), hold=True)
        with pytest.raises(Refused) as refused:
            client.open("jobs", other)
        for part in ("'jobs'", "4 KiB", "8 KiB", "groups", "'a'"):
            assert part in str(refused.value)
        assert "hold" not in str(refused.value)


def test_a_channel_that_is_not_to_be_made_is_refused_with_the_names_that_are_close(bus):
    with Bare(bus.path) as client:
        with pytest.raises(Refused, match="no channel 'jobs'; it has none yet"):
            client.open("jobs", create=False)
        client.open("jobs")
        with pytest.raises(Refused, match="no channel 'jbos'; did you mean 'jobs'"):
            client.open("jbos", create=False)
        with pytest.raises(Refused, match="no channel 'xyzzy'; it has 1 other"):
            client.open("xyzzy", create=False)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\0b", "x" * 129])
@pytest.mark.parametrize("request_name", ["open", "make"])
def test_a_name_that_is_not_possible_is_refused(bus, name, request_name):
    with Bare(bus.path) as client:
        with pytest.raises(Refused, match="name of a channel"):
            client.open(name, request=request_name)
        client.open("fine")


def test_settings_that_are_not_possible_are_refused_and_the_connection_goes_on(bus):
    with Bare(bus.path) as client:
        with pytest.raises(Refused, match="capacity"):
            client.ask("open", {"name": "jobs", "settings": {"capacity_bytes": 5}, "create": True})
        client.open("jobs")


def test_one_channel_more_than_the_limit_is_refused(bus, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CHANNELS", 2)
    with Bare(bus.path) as client:
        client.open("a")
        client.open("b")
        with pytest.raises(Refused, match=r"2 channels \(MAX_CHANNELS\)"):
            client.open("c")
        client.ask("remove", {"name": "a"})
        client.open("c")


class Gate:
    """Lets the making of channels go on when it is told to."""

    def __init__(self):
        self.reached = threading.Semaphore(0)
        self.opened = threading.Semaphore(0)
        self.error = None

    def __call__(self, label):
        self.reached.release()
        self.opened.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def test_while_a_channel_is_being_made_others_are_served_and_its_name_waits(path):
    gate = Gate()
    with Running(path, FakeFactory(gate)) as bus, Bare(path) as one, Bare(path) as two, Bare(path) as three:
        one.post("open", {"name": "jobs", "settings": None, "create": True})
        gate.reached.acquire()
        two.post("open", {"name": "jobs", "settings": None, "create": True})
        assert three.ask("list", {"after": ""}).fields["channels"] == []
        gate.opened.release()
        replies = [one.answer(), two.answer()]
        assert [reply.fields["made"] for reply in replies] == [True, False]
        for reply in replies:
            for fd in reply.descriptors:
                os.close(fd)
        assert len(bus.factory.made) == 1


def test_when_a_channel_could_not_be_made_the_next_who_waited_tries(path):
    gate = Gate()
    gate.error = NoSpace("the machine is full", needed_bytes=5)
    with Running(path, FakeFactory(gate)), Bare(path) as one, Bare(path) as two:
        one.post("open", {"name": "jobs", "settings": None, "create": True})
        gate.reached.acquire()
        two.post("make", {"name": "jobs", "settings": None, "create": True})
        gate.opened.release()
        with pytest.raises(NoSpace, match="full") as full:
            one.answer()
        assert full.value.needed_bytes == 5
        gate.reached.acquire()
        gate.opened.release()
        assert two.answer().fields["made"]


def test_a_fault_that_nobody_foresaw_fails_one_request_and_not_the_bus(path, capfd):
    gate = Gate()
    gate.error = ZeroDivisionError("a bug")
    with Running(path, FakeFactory(gate)), Bare(path) as client:
        gate.opened.release()
        with pytest.raises(ShmbusError, match="ZeroDivisionError: a bug"):
            client.open("jobs")
        gate.opened.release()
        client.open("jobs")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_broker_that_is_stopped_while_it_makes_a_channel_leaves_nothing_of_it(path):
    gate = Gate()
    with Running(path, FakeFactory(gate)) as bus, Bare(path) as client:
        client.post("open", {"name": "jobs", "settings": None, "create": True})
        gate.reached.acquire()
        bus.call(bus.broker.stop, "enough")
        gate.opened.release()
    assert [memory.closed for memory in bus.factory.made] == [True]


def test_a_list_longer_than_a_frame_arrives_in_pages(bus):
    groups = tuple(f"{index:048}" for index in range(32))
    settings = ChannelSettings(capacity_bytes=4096, groups=groups)
    names = [f"{index:0128}" for index in range(700)]
    with Bare(bus.path) as client:
        for name in names:
            client.open(name, settings, request="make")
        found, pages, after = [], 0, ""
        while True:
            reply = client.ask("list", {"after": after})
            found += [row["name"] for row in reply.fields["channels"]]
            pages += 1
            after = found[-1]
            if not reply.fields["more"]:
                break
        assert found == names
        assert pages > 3


def test_the_list_says_who_uses_a_channel(bus):
    with Bare(bus.path) as client:
        client.open("jobs", SMALL)
        (row,) = client.ask("list", {"after": ""}).fields["channels"]
        assert row["settings"] == SMALL.to_wire()
        assert row["processes"] == [os.getpid()]


def test_statistics_of_a_channel_name_its_participants_and_processes(bus):
    with Bare(bus.path) as client:
        client.open("jobs", SMALL)
        bus.factory.made[0].people = [Someone(os.getppid())]
        stats = client.ask("stats", {"name": "jobs"}).fields["stats"]
        assert stats["ring"] == {"sent_bytes": 64}
        assert stats["participants"] == [{"pid": os.getppid()}]
        assert stats["processes"][0]["pid"] == os.getpid()
        assert "pytest" in stats["processes"][0]["command"]


def test_statistics_of_the_broker_name_its_processes(bus):
    with Bare(bus.path) as client, Bare(bus.path, role="worker"):
        stats = client.ask("stats", {"name": None}).fields["stats"]
        assert (stats["bus"], stats["path"], stats["pid"]) == ("bus", bus.path, os.getpid())
        assert (stats["channels"], stats["clients"]) == (0, 2)
        (process,) = stats["processes"]
        assert (process["pid"], process["worker"], process["connections"]) == (os.getpid(), True, 2)


def test_removing_a_channel_closes_it_and_frees_its_name(bus):
    with Bare(bus.path) as client:
        first = client.open("jobs")["identity"]
        client.ask("remove", {"name": "jobs"})
        assert bus.factory.made[0].calls == ["close_channel"]
        assert bus.factory.made[0].closed
        with pytest.raises(Refused, match="no channel 'jobs'"):
            client.ask("remove", {"name": "jobs"})
        assert client.open("jobs")["identity"] != first


def test_closing_and_dropping_reach_the_channel(bus):
    with Bare(bus.path) as client:
        client.open("jobs")
        client.ask("drop_group", {"name": "jobs", "group": "a"})
        client.ask("close_channel", {"name": "jobs"})
        assert bus.factory.made[0].calls == ["drop_group a", "close_channel"]
        with pytest.raises(Refused, match="no group 'unknown'"):
            client.ask("drop_group", {"name": "jobs", "group": "unknown"})
        for name in ("drop_group", "close_channel"):
            with pytest.raises(Refused, match="did you mean 'jobs'"):
                client.ask(name, {"name": "job", **({"group": "a"} if name == "drop_group" else {})})


def test_anonymous_memory_is_made_for_anybody_and_handed_to_nobody(bus):
    settings = ChannelSettings(capacity_bytes=4096, backing=Backing.ANONYMOUS)
    with Bare(bus.path) as client:
        with pytest.raises(Refused, match="only the broker's own workers inherit"):
            client.open("jobs", settings)
        assert bus.factory.made == []
        assert client.open("jobs", settings, request="make")["made"]
        with pytest.raises(Refused, match="only the broker's own workers inherit"):
            client.open("jobs")


def test_only_the_owner_of_an_embedded_bus_shuts_it_down(bus):
    with Bare(bus.path) as client, pytest.raises(Refused, match=f"not embedded.*{os.getpid()}"):
        client.ask("shutdown", {})
    with Bare(bus.path) as client:
        assert client.ask("list", {"after": ""}).fields["channels"] == []


# Deaths -----------------------------------------------------------------------------------------------------


def drain(semaphore):
    while semaphore.acquire(blocking=False):
        pass


def test_a_death_is_reaped_on_every_channel_at_once(bus):
    with Bare(bus.path) as client:
        client.open("one")
        client.open("two")
        reader, writer = os.pipe()

        def live():
            Bare(bus.path).open("one")
            os.write(writer, b"x")
            signal.pause()

        child = forked(live)
        os.read(reader, 1)
        for memory in bus.factory.made:
            drain(memory.reaped)
        os.kill(child, signal.SIGKILL)
        for memory in bus.factory.made:
            memory.reaped.acquire()
        assert status_of(child) == -signal.SIGKILL
        os.close(reader)
        os.close(writer)
        processes = client.ask("stats", {"name": None}).fields["stats"]["processes"]
        assert [process["pid"] for process in processes] == [os.getpid()]


def test_the_end_of_a_connection_is_looked_into_and_proves_nothing(bus):
    with Bare(bus.path) as client:
        client.open("jobs")
        other = Bare(bus.path)
        other.open("jobs")
        (memory,) = bus.factory.made
        drain(memory.reaped)
        other.close()
        memory.reaped.acquire()
        (row,) = client.ask("list", {"after": ""}).fields["channels"]
        assert row["processes"] == [os.getpid()]


def test_a_death_long_after_the_connection_was_closed_is_still_seen(bus):
    with Bare(bus.path) as client:
        client.open("jobs")
        (memory,) = bus.factory.made
        reader, writer = os.pipe()

        def live():
            own = Bare(bus.path)
            own.open("jobs")
            own.close()
            os.write(writer, b"x")
            signal.pause()

        child = forked(live)
        os.read(reader, 1)
        while (row := client.ask("list", {"after": ""}).fields["channels"][0])["processes"] != sorted(
            [os.getpid(), child]
        ):
            pass
        drain(memory.reaped)
        memory.reaped.acquire(blocking=False)
        os.kill(child, signal.SIGKILL)
        while client.ask("list", {"after": ""}).fields["channels"][0]["processes"] != [os.getpid()]:
            memory.reaped.acquire()
        assert status_of(child) == -signal.SIGKILL
        assert row["processes"] == sorted([os.getpid(), child])
        os.close(reader)
        os.close(writer)


def test_a_process_whose_forked_child_keeps_the_socket_open_is_dead_all_the_same(bus):
    with Bare(bus.path) as client:
        client.open("jobs")
        (memory,) = bus.factory.made
        reader, writer = os.pipe()
        hung_up, hang_up = os.pipe()

        def live():
            own = Bare(bus.path)
            own.open("jobs")
            drain(memory.reaped)
            if os.fork() == 0:  # it has the parent's connection, and lives on
                os.close(reader)
                os.write(writer, b"x")
                # The broker hangs up on it: nobody speaks for the dead.
                assert own.socket.recv(1) == b""
                os.write(hang_up, b"x")
                os._exit(0)
            signal.pause()

        child = forked(live)
        os.read(reader, 1)
        drain(memory.reaped)
        os.kill(child, signal.SIGKILL)
        assert os.read(hung_up, 1) == b"x"
        assert status_of(child) == -signal.SIGKILL
        assert [one["pid"] for one in client.ask("stats", {"name": None}).fields["stats"]["processes"]] == [
            os.getpid()
        ]
        for fd in (reader, writer, hung_up, hang_up):
            os.close(fd)


def test_a_process_that_nothing_ties_to_the_bus_is_forgotten_with_its_connection(bus):
    with Bare(bus.path) as client:
        reader, writer = os.pipe()

        def live():
            Bare(bus.path).close()
            os.write(writer, b"x")
            signal.pause()

        child = forked(live)
        os.read(reader, 1)
        while len(client.ask("stats", {"name": None}).fields["stats"]["processes"]) > 1:
            pass
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL
        os.close(reader)
        os.close(writer)


def test_a_channel_that_cannot_be_reaped_does_not_keep_others_from_it(bus):
    with Bare(bus.path) as client:
        client.open("bad")
        client.open("good")
        bad, good = bus.factory.made

        def fail():
            raise ShmbusError("it is damaged")

        bad.reap = fail
        drain(good.reaped)
        Bare(bus.path).close()
        good.reaped.acquire()


# Giving channels back ---------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    made = FakeMemory(SMALL, "jobs")
    yield made
    made.close()


def test_a_channel_that_is_given_back_is_served_again(bus, memory):
    with Bare(bus.path) as one, Bare(bus.path) as two:
        assert one.ask("offer", *offer_of(memory)).fields["merged"] is False
        assert two.open("jobs", create=False)["identity"] == memory.identity
        (opened,) = bus.factory.made
        assert os.fstat(opened.control_fd).st_ino == os.fstat(memory.control_fd).st_ino


def test_the_second_who_gives_it_back_is_merged_with_the_first(bus, memory):
    with Bare(bus.path) as one, Bare(bus.path) as two:
        one.ask("offer", *offer_of(memory))
        before = open_descriptors()
        assert two.ask("offer", *offer_of(memory)).fields["merged"] is True
        expect_descriptors(two, before)
        assert len(bus.factory.made) == 1


def test_of_two_channels_with_one_name_the_first_that_is_given_back_wins(bus, memory):
    other = FakeMemory(SMALL, "jobs")
    with Bare(bus.path) as one, Bare(bus.path) as two:
        one.ask("offer", *offer_of(memory))
        with pytest.raises(Refused, match="given to another channel meanwhile"):
            two.ask("offer", *offer_of(other))
        assert two.open("jobs")["identity"] == memory.identity
    other.close()


def test_a_data_region_that_is_only_readable_is_opened_for_writing(bus, memory):
    fields, descriptors = offer_of(memory)
    read_only = os.open(f"/proc/self/fd/{descriptors[1]}", os.O_RDONLY)
    with Bare(bus.path) as client:
        client.ask("offer", fields, [descriptors[0], read_only, descriptors[2]])
        os.pwrite(bus.factory.made[0].data_fd, b"x", 0)
    os.close(read_only)


def spoil(index, make):
    def spoiled(fields, descriptors):
        return fields, [make() if position == index else fd for position, fd in enumerate(descriptors)]

    return spoiled


def change(**changes):
    return lambda fields, descriptors: ({**fields, **changes}, descriptors)


BAD_OFFERS = {
    "a folder": (spoil(0, lambda: os.open("/", os.O_RDONLY)), "no regular file"),
    "an eventfd": (spoil(1, lambda: os.eventfd(0)), "no regular file"),
    "a device": (spoil(1, lambda: os.open("/dev/null", os.O_RDWR)), "no regular file"),
    "an open path": (
        spoil(0, lambda: os.open("/proc/self/status", os.O_PATH)),
        "no memfd|opened for writing",
    ),
    "an unsealed memfd": (spoil(0, lambda: region(b"", 0)), "sealed"),
    "a half sealed memfd": (spoil(1, lambda: region(b"", SEALS & ~2)), "sealed"),
    "a file for a memfd": (spoil(0, lambda: os.open("/etc/passwd", os.O_RDONLY)), "sealed"),
    "no eventfd": (spoil(2, lambda: os.open("/dev/null", os.O_RDWR)), "eventfd"),
    "a memfd of something else": (spoil(0, lambda: region(b"x" * 100)), "no channel"),
    "another identity": (change(identity=bytes(16)), "header"),
    "other settings": (change(settings=ChannelSettings(capacity_bytes=8192).to_wire()), "header"),
    "another name": (change(name="other"), "header"),
    "impossible settings": (change(settings={"hold": 5}), "hold"),
    "anonymous memory": (change(settings={**SMALL.to_wire(), "backing": "anonymous"}), "anonymous"),
    "an impossible name": (change(name="a/b"), "name of a channel"),
    "memory with a name": (change(settings={**SMALL.to_wire(), "backing": "shm"}), "header"),
    "a file system of another process": (
        lambda fields, fds: (
            {**fields, "settings": {**SMALL.to_wire(), "backing": "file", "directory": "/"}},
            [os.open("/proc/self/status", os.O_RDONLY), *fds[1:]],
        ),
        "of type proc",
    ),
}


@pytest.mark.parametrize("what", BAD_OFFERS)
def test_what_is_no_channel_cannot_be_given_back(bus, memory, what):
    spoiler, why = BAD_OFFERS[what]
    fields, own = offer_of(memory)
    with Bare(bus.path) as other:
        before = open_descriptors()
        fields, descriptors = spoiler(fields, own)
        with Bare(bus.path) as client:
            with pytest.raises(ShmbusError, match=why):
                client.ask("offer", fields, descriptors)
            assert bus.factory.made == []
            assert client.ask("offer", *offer_of(memory)).fields["merged"] is False
            client.ask("remove", {"name": "jobs"})
        for fd in set(descriptors) - set(own):
            os.close(fd)
        expect_descriptors(other, before)


# Names that outlive the broker ------------------------------------------------------------------------------


@pytest.fixture
def lives():
    """A process that lives until the test says otherwise."""
    child = forked(signal.pause)
    yield child
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def leave_list(path, *rows):
    listing = ChannelList(path.replace(".sock", ".channels"))
    listing.write(rows)
    return listing


def test_a_channel_is_listed_before_its_maker_hears_of_it_with_all_who_take_part(path, lives):
    with Running(path, listed=True) as bus, Bare(path) as client:
        listing = ChannelList(bus.hold.list_path)
        made = client.open("jobs", request="make")
        assert listing.read() == [Listed("jobs", made["identity"], frozenset())]
        bus.factory.made[0].people = [Someone(lives), Someone(os.getpid())]
        client.open("jobs")
        own = (os.getpid(), start_ticks(os.getpid()))
        assert listing.read()[0].participants == {own, (lives, start_ticks(lives))}
        client.ask("remove", {"name": "jobs"})
        assert listing.read() == []


def test_a_list_that_cannot_be_written_fails_the_request_and_makes_nothing(path):
    with Running(path, listed=True) as bus, Bare(path) as client:
        os.mkdir(bus.hold.list_path)
        with pytest.raises(NoSpace, match="list of channels"):
            client.open("jobs")
        assert [memory.closed for memory in bus.factory.made] == [True]
        os.rmdir(bus.hold.list_path)
        client.open("jobs", request="make")


def test_a_listed_name_is_not_made_anew_while_a_participant_lives(path, lives, monkeypatch):
    monkeypatch.setattr(broker_channels, "LISTED_SECONDS", 0.02)
    leave_list(path, Listed("jobs", b"i" * 16, frozenset({(lives, start_ticks(lives))})))
    with Running(path, listed=True) as bus, Bare(path) as client:
        with pytest.raises(Refused, match=f"'jobs' is kept.*process {lives}"):
            client.open("jobs")
        client.open("other")
        assert ChannelList(bus.hold.list_path).read()[0].name in ("jobs", "other")
        assert [memory.label for memory in bus.factory.made] == ["other"]


def test_a_listed_name_is_free_once_its_last_participant_is_proved_dead(path, lives):
    leave_list(path, Listed("jobs", b"i" * 16, frozenset({(lives, start_ticks(lives))})))
    with Running(path, listed=True), Bare(path) as client, Bare(path) as other:
        client.post("make", {"name": "jobs", "settings": None, "create": True})
        assert other.ask("list", {"after": ""}).fields["channels"] == []
        os.kill(lives, signal.SIGKILL)
        assert client.answer().fields["made"]


@pytest.mark.parametrize("ticks", [1, -1])
def test_a_listed_participant_whose_number_has_a_new_bearer_is_dead(path, ticks):
    leave_list(path, Listed("jobs", b"i" * 16, frozenset({(os.getpid(), start_ticks(os.getpid()) + ticks)})))
    with Running(path, listed=True), Bare(path) as client:
        assert client.open("jobs")["made"]


def test_a_listed_name_without_participants_is_free(path):
    leave_list(path, Listed("jobs", b"i" * 16, frozenset()))
    with Running(path, listed=True) as bus, Bare(path) as client:
        assert ChannelList(bus.hold.list_path).read() == []
        assert client.open("jobs")["made"]


def test_a_listed_channel_that_is_given_back_is_handed_to_whoever_waited(path, lives, memory):
    leave_list(path, Listed("jobs", memory.identity, frozenset({(lives, start_ticks(lives))})))
    with Running(path, listed=True), Bare(path) as giver, Bare(path) as waiter:
        waiter.post("make", {"name": "jobs", "settings": None, "create": True})
        giver.ask("offer", *offer_of(memory))
        reply = waiter.answer()
        assert (reply.fields["made"], reply.fields["identity"]) == (False, memory.identity)


def test_a_listed_name_takes_no_other_channel_than_its_own(path, lives, memory):
    leave_list(path, Listed("jobs", b"i" * 16, frozenset({(lives, start_ticks(lives))})))
    with (
        Running(path, listed=True),
        Bare(path) as client,
        pytest.raises(Refused, match="kept for another channel"),
    ):
        client.ask("offer", *offer_of(memory))


def test_a_listed_name_can_be_given_up_by_removing_it(path, lives):
    leave_list(path, Listed("jobs", b"i" * 16, frozenset({(lives, start_ticks(lives))})))
    with Running(path, listed=True), Bare(path) as client:
        client.ask("remove", {"name": "jobs"})
        assert client.open("jobs")["made"]


def test_a_broker_that_ends_well_leaves_a_list_only_of_channels_in_use(path, lives, tmp_path):
    with Running(path, listed=True) as bus, Bare(path) as client:
        client.open("idle", request="make")
        client.open("used", request="make")
        bus.factory.made[1].people = [Someone(lives)]
        client.close()
    listing = ChannelList(bus.hold.list_path)
    assert listing.read() == []
    with Running(path, listed=True) as bus, Bare(path) as client:
        client.open("idle", request="make")
        client.open("used")
    assert [row.name for row in listing.read()] == ["used"]
    listing.write([])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_list_keeps_the_broker_from_starting(path):
    with open(path.replace(".sock", ".channels"), "wb") as file:
        file.write(msgpack.packb({"version": 99}))
    with pytest.raises(Refused, match="version 99"):
        Running(path, listed=True)
    os.unlink(path.replace(".sock", ".channels"))
