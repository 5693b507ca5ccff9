"""A client whose broker dies and comes back."""

import gc
import os
import socket
import threading
import time

import pytest
from broker_help import Running, python

from shmbus import client_link, control
from shmbus.broker_memory import RingFactory
from shmbus.client import BrokerClient
from shmbus.control_io import receive_some, send_some
from shmbus.errors import NoBroker
from shmbus.settings import Backing, ChannelSettings

SMALL = ChannelSettings(capacity_bytes=4096)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "b.sock")


@pytest.fixture
def mute(path):
    """A socket that somebody listens at who never says anything."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield listener


class Scripted:
    """A broker of one connection that answers so many requests and then hangs up."""

    def __init__(self, listener, answers):
        self.listener = listener
        self.answers = answers
        self.seen = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        for answers in self.answers:
            connected, _ = self.listener.accept()
            server = control.ServerConnection()
            left = answers
            while True:
                request = server.next_request()
                if request is None:
                    data, descriptors = receive_some(connected)
                    if not data:
                        break
                    server.receive(data, descriptors)
                    continue
                for fd in request.descriptors:
                    os.close(fd)
                self.seen.append(request.name)
                if left == 0:
                    break
                left -= 1
                fields = {
                    "hello": {"bus": "b", "pid": 1, "embedded": False, "instance": b""},
                    "list": {"channels": [], "more": False},
                    "remove": {},
                }[request.name]
                send_some(connected, server.reply(request, fields))
            connected.close()


def test_a_request_that_was_lost_with_the_broker_is_repeated_if_that_makes_no_difference(mute, path):
    broker = Scripted(mute, [2, 2])
    with BrokerClient(path) as client:
        assert client.list() == []
        assert client.list() == []
        assert broker.seen == ["hello", "list", "list", "hello", "list"]
    broker.thread.join()


def test_a_request_that_may_have_been_carried_out_is_not_repeated(mute, path):
    broker = Scripted(mute, [2])
    with BrokerClient(path) as client:
        assert client.list() == []
        with pytest.raises(NoBroker, match="asked to remove; whether it has done so is not known"):
            client.remove("jobs")
    broker.thread.join()
    assert broker.seen == ["hello", "list", "remove"]


def test_a_request_that_is_lost_on_a_fresh_connection_is_given_up(mute, path):
    broker = Scripted(mute, [1])
    with BrokerClient(path) as client, pytest.raises(NoBroker, match="has ended"):
        client.list()
    broker.thread.join()


def test_a_restarted_broker_gets_its_channels_back_at_the_next_request(path):
    with BrokerClient(path) as client:
        first = Running(path, RingFactory(), listed=True)
        _, memory = client.open_channel("jobs", SMALL)
        first.stop(like_a_kill=True)
        with pytest.raises(NoBroker):
            client.list()
        with Running(path, RingFactory(), listed=True):
            (row,) = client.list()
            assert (row["name"], row["identity"]) == ("jobs", memory.identity)
            with BrokerClient(path) as other:
                settings, found = other.open_channel("jobs", create=False)
                assert (settings, found.identity) == (SMALL, memory.identity)
                found.close()
            client.remove("jobs")
            assert memory.is_closed()
            memory.close()


@pytest.mark.parametrize("backing", [Backing.SHM, Backing.FILE])
def test_other_backings_are_given_back_as_well(path, tmp_path, backing):
    directory = str(tmp_path) if backing is Backing.FILE else None
    wanted = ChannelSettings(capacity_bytes=4096, backing=backing, directory=directory)
    with BrokerClient(path) as client:
        first = Running(path, RingFactory(), listed=True)
        _, memory = client.open_channel("jobs", wanted)
        first.stop(like_a_kill=True)
        with Running(path, RingFactory(), listed=True):
            (row,) = client.list()
            assert (row["settings"], row["identity"]) == (wanted.to_wire(), memory.identity)
        memory.close()


def until(condition, meanwhile):
    """The slow path of a channel, again and again."""
    while not condition():
        meanwhile()


def test_tending_gives_channels_back_without_a_request(path, monkeypatch):
    monkeypatch.setattr(client_link, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(client_link, "RETRY_MOST_SECONDS", 0.001)
    with BrokerClient(path) as client:
        first = Running(path, RingFactory())
        _, memory = client.open_channel("jobs", SMALL)
        assert client.tend() is True
        first.stop(like_a_kill=True)
        assert client.tend() is False
        assert client.tend() is False
        with Running(path, RingFactory()), BrokerClient(path) as other:
            until(client.tend, other.list)
            until(lambda: [row["identity"] for row in other.list()] == [memory.identity], client.tend)
        memory.close()


def test_after_a_failed_attempt_tending_leaves_it_for_a_while(path, monkeypatch):
    with BrokerClient(path) as client:
        with Running(path):
            client.connect()
        attempts = []
        real = client_link.Link._connect
        monkeypatch.setattr(
            client_link.Link, "_connect", lambda self, *a, **k: (attempts.append(1), real(self, *a, **k))
        )
        now = [time.monotonic()]
        monkeypatch.setattr(client_link.time, "monotonic", lambda: now[0])
        pauses = []
        for _ in range(8):
            before = len(attempts)
            start = now[0]
            while len(attempts) == before:
                assert client.tend() is False
                now[0] += 0.05
            pauses.append(now[0] - start)
        assert pauses[1] < pauses[-1] <= client_link.RETRY_MOST_SECONDS + 0.1


def test_a_channel_that_the_new_broker_does_not_take_back_goes_on_and_is_noted(path):
    with BrokerClient(path) as client, BrokerClient(path) as other:
        first = Running(path, RingFactory())
        _, memory = client.open_channel("jobs", SMALL)
        first.stop(like_a_kill=True)
        with Running(path, RingFactory()):
            other.make_channel("jobs", SMALL)  # without a list, the name was free
            assert [row["identity"] for row in client.list()] != [memory.identity]
            assert "another channel" in str(client.refused_offers["jobs"])
            assert not memory.is_closed()
        memory.close()


def test_a_channel_that_is_closed_here_is_not_given_back(path):
    with BrokerClient(path) as client:
        first = Running(path, RingFactory())
        _, kept = client.open_channel("kept", SMALL)
        _, closed = client.open_channel("closed", SMALL)
        _, dropped = client.open_channel("dropped", SMALL)
        closed.close()
        del dropped
        gc.collect()
        first.stop(like_a_kill=True)
        with Running(path, RingFactory()):
            assert [row["name"] for row in client.list()] == ["kept"]
        kept.close()


def test_memory_that_came_in_another_way_can_be_given_back_too(path):
    with Running(path, RingFactory()) as bus, BrokerClient(path) as client:
        memory = RingFactory().create(SMALL, "jobs")
        client.hold("jobs", memory)
        assert [row["name"] for row in client.list()] == ["jobs"]
        assert len(list(bus.broker._channels)) == 1
        memory.close()


PARTICIPANT = """
import sys
from shmbus.client import BrokerClient
client = BrokerClient(sys.argv[1])
settings, memory = client.open_channel("jobs")
print(memory.identity.hex(), flush=True)
for line in sys.stdin:
    try:
        client.list()
        print("listed", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


def test_many_processes_give_one_channel_back_to_a_broker_that_was_killed(path):
    first = Running(path, RingFactory(), listed=True)
    with BrokerClient(path) as client, python(PARTICIPANT, path) as one, python(PARTICIPANT, path) as two:
        client.make_channel("jobs", SMALL)
        identity = one.stdout.readline()
        assert two.stdout.readline() == identity
        first.stop(like_a_kill=True)
        with Running(path, RingFactory(), listed=True):
            for process in (one, two):
                process.stdin.write("go\n")
            for process in (one, two):
                assert process.stdout.readline() == "listed\n"
            (row,) = client.list()
            assert row["identity"].hex() + "\n" == identity
            assert row["processes"] == sorted([one.pid, two.pid])


def test_a_name_whose_participants_have_all_died_with_the_broker_is_free(path):
    first = Running(path, RingFactory(), listed=True)
    with python(PARTICIPANT, path) as one:
        identity = one.stdout.readline()
    first.stop(like_a_kill=True)
    with Running(path, RingFactory(), listed=True), BrokerClient(path) as client:
        _, memory = client.open_channel("jobs", SMALL)
        assert memory.identity.hex() + "\n" != identity
        memory.close()
