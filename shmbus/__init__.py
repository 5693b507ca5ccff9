"""Shared-memory channels between Python processes on one machine.

    with shmbus.Bus() as bus:
        jobs = bus.channel("jobs")
        bus.spawn(consume, jobs.consumer(group="workers"), count=4)
        with jobs.producer() as tx:
            for item in source:
                tx.send(item)

`Bus` starts a broker of its own, `connect` joins one that runs, `channel` makes a channel without any.
"""

from shmbus.bus import Bus, connect
from shmbus.channel import Channel, Consumer, Lease, Loan, Producer, channel
from shmbus.errors import (
    Closed,
    Corrupt,
    DecodeError,
    EncodeError,
    EndOfChannel,
    NoBroker,
    NoSpace,
    PeerDied,
    Refused,
    ShmbusError,
    TimedOut,
    TooLarge,
    WorkerFailed,
    WouldBlock,
)
from shmbus.region import Advice, Prot, Region, Visibility
from shmbus.settings import Backing, ChannelSettings

__all__ = [
    "Advice",
    "Backing",
    "Bus",
    "Channel",
    "ChannelSettings",
    "Closed",
    "Consumer",
    "Corrupt",
    "DecodeError",
    "EncodeError",
    "EndOfChannel",
    "Lease",
    "Loan",
    "NoBroker",
    "NoSpace",
    "PeerDied",
    "Producer",
    "Prot",
    "Refused",
    "Region",
    "ShmbusError",
    "TimedOut",
    "TooLarge",
    "Visibility",
    "WorkerFailed",
    "WouldBlock",
    "channel",
    "connect",
]
