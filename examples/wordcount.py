"""Counts the words of text files in four processes: `python wordcount.py FILE ...`.

Files go out through one channel, each to one of the workers; the counts come back through another. `shmbus
demo` is the same at full length: with producers, progress, and a check of every record.
"""

import sys
from collections import Counter
from pathlib import Path

import shmbus


def count(rx, tx):
    with tx:
        for text in rx:
            tx.send(Counter(text.lower().split()))


def main(paths):
    with shmbus.Bus() as bus:
        texts = bus.channel("texts")
        counts = bus.channel("counts")
        bus.spawn(count, texts.consumer(), counts.producer(), count=4)
        with texts.producer() as tx:
            for path in paths:
                tx.send(Path(path).read_text(errors="replace"))
        with counts.consumer() as rx:
            total = sum((Counter(one) for one in rx), Counter())
    for word, number in total.most_common(10):
        print(f"{number:>8,}  {word}")


if __name__ == "__main__":
    main(sys.argv[1:])
