"""The client: requests, threads, forks, and brokers that do not answer."""

import os
import signal
import socket
import threading

import pytest
from broker_help import FakeFactory, Running, forked, let_others_through, open_descriptors, python, status_of

from shmbus import client as client_module
from shmbus import client_link, control
from shmbus.broker_memory import RingFactory
from shmbus.client import BrokerClient, shared_client
from shmbus.errors import Closed, NoBroker, Refused, TimedOut
from shmbus.settings import Backing, ChannelSettings

SMALL = ChannelSettings(capacity_bytes=4096)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "b.sock")


@pytest.fixture
def bus(path):
    with Running(path, RingFactory()) as running:
        yield running


@pytest.fixture
def client(bus):
    with BrokerClient(bus.path) as connected:
        yield connected


# Requests ---------------------------------------------------------------------------------------------------


def test_a_client_connects_at_its_first_request_and_knows_its_broker_then(bus):
    with BrokerClient(bus.path) as fresh:
        assert (fresh.bus_name, fresh.broker_pid) == (None, None)
        assert fresh.list() == []
        assert (fresh.bus_name, fresh.broker_pid) == ("bus", os.getpid())


@pytest.mark.parametrize("backing", [Backing.MEMFD, Backing.SHM, Backing.FILE])
def test_a_channel_is_opened_with_its_memory(client, backing, tmp_path):
    directory = str(tmp_path) if backing is Backing.FILE else None
    wanted = ChannelSettings(capacity_bytes=8192, groups=("a",), backing=backing, directory=directory)
    settings, memory = client.open_channel("jobs", wanted)
    assert settings == memory.settings == wanted
    again, other = client.open_channel("jobs")
    assert again == wanted
    assert other is not memory
    assert other.identity == memory.identity == client.list()[0]["identity"]
    memory.close()
    other.close()
    client.remove("jobs")


def test_making_finding_closing_and_dropping(client):
    wanted = ChannelSettings(capacity_bytes=4096, groups=("a", "b"))
    assert client.make_channel("jobs", wanted) == wanted
    assert client.make_channel("jobs", create=False) == wanted
    _, memory = client.open_channel("jobs")
    client.drop_group("jobs", "a")
    with pytest.raises(Refused, match="'a'"):
        client.drop_group("jobs", "a")
    assert not memory.is_closed()
    client.close_channel("jobs")
    assert memory.is_closed()
    memory.close()
    with pytest.raises(Refused, match="did you mean 'jobs'"):
        client.make_channel("job", create=False)


def test_a_removed_channel_is_closed_for_those_who_have_it_open(client):
    _, memory = client.open_channel("jobs", SMALL)
    client.remove("jobs")
    assert memory.is_closed()
    assert client.list() == []
    memory.close()


def test_statistics_arrive_whole(client):
    client.make_channel("jobs", SMALL)
    assert client.stats("jobs")["ring"]["capacity_bytes"] == 4096
    assert client.stats()["channels"] == 1


def test_a_long_list_is_put_together_from_its_pages(path):
    settings = ChannelSettings(capacity_bytes=4096, groups=tuple(f"{index:048}" for index in range(32)))
    with Running(path, FakeFactory()), BrokerClient(path) as client:
        names = [f"{index:0128}" for index in range(400)]
        for name in names:
            client.make_channel(name, settings)
        assert [row["name"] for row in client.list()] == names


def test_a_refusal_leaves_the_connection_as_it_was(client):
    client.connect()
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(Refused):
            client.make_channel("jobs", create=False)
    assert client.list() == []
    assert open_descriptors() == before


def test_a_mistake_in_a_request_is_found_here(client):
    with pytest.raises(Refused, match="MAX_FRAME_BYTES"):
        client.spawn(bytes(2 << 20), 1)
    assert client.list() == []


def test_many_threads_share_one_client(client):
    errors = []

    def work(number):
        try:
            for turn in range(10):
                name = f"c{number}.{turn}"
                client.make_channel(name, SMALL)
                _, memory = client.open_channel(name)
                memory.close()
                client.remove(name)
                client.tend()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert client.list() == []
    assert client.stats()["clients"] == 1


def test_a_closed_client_says_so(client):
    client.connect()
    client.close()
    client.close()
    assert client.closed
    with pytest.raises(Closed, match="closed"):
        client.list()
    assert client.tend() is False


def test_endpoints_of_one_bus_share_a_client(bus):
    one = shared_client(bus.path)
    assert shared_client(bus.path) is one
    one.close()
    other = shared_client(bus.path)
    assert other is not one
    assert other.list() == []
    other.close()


PARTICIPANT = """
import sys
from shmbus.client import BrokerClient
_, memory = BrokerClient(sys.argv[1]).open_channel("jobs")
memory.register()
print("registered", flush=True)
sys.stdin.readline()
"""


def test_the_slot_of_a_killed_participant_is_freed_by_the_broker_at_once(bus, client):
    _, memory = client.open_channel("jobs", SMALL)
    with python(PARTICIPANT, bus.path) as process:
        assert process.stdout.readline() == "registered\n"
        assert [one.pid for one in memory.participants()] == [process.pid]
        process.kill()
        while memory.participants():  # nobody but the broker reaps here
            client.list()
    memory.close()


def test_many_short_clients_of_one_process_are_all_served(bus):
    for _ in range(100):
        with BrokerClient(bus.path) as fresh:
            assert fresh.list() == []


def test_a_client_closes_every_descriptor_that_it_was_given(client):
    client.connect()
    before = open_descriptors()
    _, memory = client.open_channel("jobs", SMALL)
    memory.close()
    client.remove("jobs")
    assert open_descriptors() == before


# Without an answer ------------------------------------------------------------------------------------------


def test_nobody_at_the_path_is_no_broker(path):
    with pytest.raises(NoBroker, match=r"no broker answers at .*b\.sock \(No such file") as nobody:
        BrokerClient(path).list()
    assert nobody.value.path == path
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(NoBroker, match="Connection refused"):
        BrokerClient(path).list()


def test_for_a_named_bus_the_error_says_how_to_start_its_broker(unique):
    with pytest.raises(NoBroker, match=f"shmbus broker --bus {unique}"):
        BrokerClient(client_module.socket_path(unique)).list()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_socket_that_is_closed_to_this_user_is_refused(bus):
    def enter():
        os.setuid(12345)
        with pytest.raises(Refused, match="mode"):
            BrokerClient(bus.path).list()

    let_others_through(bus.path)
    assert status_of(forked(enter)) == 0


@pytest.fixture
def mute(path):
    """A socket that somebody listens at who never says anything."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield listener


def listing_fails_with(kind, client):
    """A thread in which a request fails so."""

    def work():
        with pytest.raises(kind):
            client.list()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_broker_that_does_not_answer_is_timed_out_of(mute, path):
    with BrokerClient(path, timeout=0.05) as client:
        before = open_descriptors()
        with pytest.raises(TimedOut, match=r"within 0\.05 seconds; is it stopped"):
            client.list()
        assert open_descriptors() == before


def test_a_broker_that_accepts_nobody_is_timed_out_of(path):
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(path)
        full.listen(0)
        first.connect(path)
        with (
            BrokerClient(path, timeout=0.05) as client,
            pytest.raises(TimedOut, match="accepts no connections"),
        ):
            client.list()


def test_tending_never_waits_for_a_broker_that_does_not_answer(mute, path):
    with BrokerClient(path, timeout=0.01) as client:
        assert client.tend() is False  # it has never been connected: there is nothing to look after
        with pytest.raises(TimedOut):
            client.list()
        client._link._retry_at = 0.0
        assert client.tend() is True  # connected, as far as can be told
        for _ in range(100):
            assert client.tend() is True


def test_tending_does_not_wait_for_a_thread_that_has_the_connection(mute, path):
    with BrokerClient(path, timeout=None) as client:
        thread = listing_fails_with(NoBroker, client)
        accepted, _ = mute.accept()
        assert client.tend() is True
        accepted.close()
        thread.join()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", control.encode_frame({"reply": 5})])
def test_what_answers_like_no_broker_is_refused(mute, path, answer):
    with BrokerClient(path) as client:
        thread = listing_fails_with(Refused, client)
        accepted, _ = mute.accept()
        accepted.sendall(answer)
        thread.join()
        accepted.close()


def test_an_interrupted_request_leaves_no_answer_for_the_next(bus, monkeypatch):
    with BrokerClient(bus.path) as client:
        client.connect()
        real = client_link.Link._await

        def interrupted(self, event, deadline):
            monkeypatch.setattr(client_link.Link, "_await", real)
            raise KeyboardInterrupt

        monkeypatch.setattr(client_link.Link, "_await", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.make_channel("jobs", SMALL)
        assert [row["name"] for row in client.list()] in (["jobs"], [])


class RungError(Exception):
    pass


def ring(*_):
    raise RungError


def test_a_signal_ends_the_wait_for_an_answer(mute, path):
    before = signal.signal(signal.SIGUSR1, ring)
    main = threading.main_thread().ident

    def broker():
        with mute.accept()[0] as accepted:
            came = b""
            while b"after" not in came:  # the last of what is sent before the wait
                came += accepted.recv(1000)
            signal.pthread_kill(main, signal.SIGUSR1)
            assert accepted.recv(1) == b""

    thread = threading.Thread(target=broker)
    thread.start()
    try:
        with BrokerClient(path) as client, pytest.raises(RungError):
            client.list()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


# Forks ------------------------------------------------------------------------------------------------------


def test_a_forked_child_connects_afresh(bus, client):
    client.connect()

    def work():
        assert client.bus_name is None
        assert client.stats()["clients"] == 2
        pids = {process["pid"] for process in client.stats()["processes"]}
        assert os.getpid() in pids

    assert status_of(forked(work)) == 0
    assert client.list() == []


def test_a_fork_in_the_middle_of_a_request_hurts_neither_side(mute, path):
    with BrokerClient(path, timeout=None) as client:
        thread = listing_fails_with(NoBroker, client)
        accepted, _ = mute.accept()
        accepted.recv(1)  # the request is on its way, and the thread has the lock

        def work():
            client._link._timeout = 0.01
            with pytest.raises(TimedOut):
                client.list()

        child = forked(work)
        assert status_of(child) == 0
        accepted.close()
        thread.join()


def test_a_child_that_goes_away_does_not_end_its_parents_connection(bus, client):
    client.connect()
    instance = client._link._socket
    assert status_of(forked(lambda: None)) == 0
    assert client.list() == []
    assert client._link._socket is instance
