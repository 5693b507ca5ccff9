"""Channels that outlive their broker: given back to the next one, their names kept meanwhile."""

import contextlib
import os
import signal
import tempfile

import msgpack
import pytest
from broker_help import (
    SEALS,
    Bare,
    FakeMemory,
    Running,
    Someone,
    expect_descriptors,
    forked,
    offer_of,
    open_descriptors,
    region,
)

from shmbus import broker_channels
from shmbus.broker_hold import ChannelList, Listed
from shmbus.control_io import start_ticks
from shmbus.errors import NoSpace, Refused, ShmbusError
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


def own_file():
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


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
    "a file for a memfd": (spoil(0, own_file), "sealed"),
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
