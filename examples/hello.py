"""Greets from another process: one channel, one worker."""

import shmbus


def greet(rx):  # runs in its own process
    for name in rx:
        print(f"Hello, {name}!")


if __name__ == "__main__":
    with shmbus.Bus() as bus:
        names = bus.channel("names", capacity="64 KiB")
        bus.spawn(greet, names.consumer())
        with names.producer() as tx:
            tx.send("world")
            tx.send("shared memory")
