"""The comparison mode: over private mappings, what one end writes does not reach the other."""

import pytest

import shmbus


@pytest.mark.parametrize("backing", ["memfd", "shm"])
def test_a_ring_over_private_mappings_delivers_nothing(backing: str) -> None:
    channel = shmbus.channel("64 KiB", visibility="private", backing=backing)
    with channel.producer() as tx, channel.consumer() as rx:
        tx.send("into pages of its own")
        with pytest.raises(shmbus.TimedOut):
            rx.recv(timeout=0.05)
    channel.detach()


def test_a_private_channel_of_a_bus_delivers_nothing_either() -> None:
    with shmbus.Bus() as bus:
        channel = bus.channel("compared", capacity="64 KiB", visibility=shmbus.Visibility.PRIVATE)
        with channel.producer() as tx, channel.consumer() as rx:
            tx.send("into pages of its own")
            with pytest.raises(shmbus.TimedOut):
                rx.recv(timeout=0.05)


def test_the_same_over_shared_mappings_delivers() -> None:
    channel = shmbus.channel("64 KiB", visibility="shared")
    with channel.producer() as tx, channel.consumer() as rx:
        tx.send("for all to see")
        assert rx.recv(timeout=10) == "for all to see"
    channel.detach()
