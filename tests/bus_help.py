"""For the tests of the bus: targets for workers."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn

import shmbus
from shmbus import Channel, Consumer, Producer, connect

METHODS = ["fork", "spawn", "forkserver"]
LITTLE = "4 KiB"
"""A capacity that is soon used up."""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(shmbus.__path__[0])])
    return {**os.environ, "PYTHONPATH": path, **more}


# --- targets ---


def add_up(rx: Consumer, results: Producer) -> None:
    with rx, results:
        results.send(sum(rx))


def count_to(number: int, tx: Producer) -> None:
    with tx:
        for value in range(number):
            tx.send(value)


def count_into(ends: dict[str, Any]) -> None:
    for tx in ends["nested"]:
        count_to(10, tx)


def fail_after(records: int, rx: Consumer) -> NoReturn:
    with rx:
        for _ in range(records):
            rx.recv()
        raise ValueError("bad record")


def take(records: int, rx: Consumer) -> None:
    with rx:
        for _ in range(records):
            rx.recv()


def drain(rx: Consumer) -> None:
    with rx:
        for _ in rx:
            pass


def fill(tx: Producer) -> None:
    """Send more than fits."""
    count_to(1000, tx)


def for_ever(rx: Consumer, ready: Producer) -> None:
    with ready:
        ready.send(os.getpid())
    drain(rx)


def fail_at_first(marker: str, tx: Producer) -> None:
    with tx:
        if not os.path.exists(marker):
            open(marker, "w").close()
            raise ValueError("not yet")
        tx.send("done")


def send_its_pid(channel: Channel) -> None:
    with channel.producer() as tx:
        tx.send(os.getpid())


def kill_yourself(rx: Consumer) -> None:
    with rx:
        rx.recv()
        signal.raise_signal(signal.SIGKILL)


def drain_later(go: Consumer, rx: Consumer) -> None:
    with go:
        go.recv()
    drain(rx)


def die_sending(tx: Producer, go: Consumer) -> None:
    with tx, go:
        go.recv()
        tx.send(1)
        signal.raise_signal(signal.SIGKILL)


def start_another(path: str, tx: Producer) -> None:
    with tx, connect(socket=path) as bus:
        tx.send("child")
        bus.spawn(say, bus.channel("x").producer(), "grandchild")


def say(tx: Producer, word: str) -> None:
    with tx:
        tx.send(word)


def pause(ready: Producer) -> None:
    with ready:
        ready.send(os.getpid())
    while True:
        signal.pause()


def add_up_when_ready(rx: Consumer, results: Producer, ready: Producer) -> None:
    with rx, results:
        with ready:
            ready.send("ready")
        results.send(sum(rx))


def refuse_to_end(ready: Producer) -> None:
    words = ["here"]
    while True:
        try:
            if words:
                print(words.pop(), flush=True)
            signal.pause()
        except SystemExit:
            words = ["no"]
