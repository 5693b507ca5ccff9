"""The channels of a broker: made, opened, listed, removed; and the deaths of those who use them."""

import os
import signal
import threading

import pytest
from broker_help import (
    Bare,
    FakeFactory,
    Running,
    Someone,
    drain,
    forked,
    status_of,
)

from shmbus import limits
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
        assert "python" in stats["processes"][0]["command"]


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
