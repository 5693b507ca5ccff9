"""Counts the words of text files: `python wordcount.py FILE ...`.

One worker reads, four count, this process adds up: the texts go through one channel, each to one of the four,
and the counts through another. `shmbus demo` is the same at full length, with a check of every record.
"""

import sys
from collections import Counter
from pathlib import Path

import shmbus


def read(paths, tx):
    with tx:
        for path in paths:
            tx.send(Path(path).read_text(errors="replace"))


def count(rx, tx):
    with tx:
        for text in rx:
            tx.send(Counter(text.lower().split()))


def main(paths):
    total = Counter()
    with shmbus.Bus() as bus:
        texts = bus.channel("texts")
        counts = bus.channel("counts")
        bus.spawn(count, texts.consumer(), counts.producer(), count=4)
        bus.spawn(read, paths, texts.producer())
        for one in counts.consumer():
            total.update(one)
    for word, number in total.most_common(10):
        print(f"{number:>8,}  {word}")


if __name__ == "__main__":
    main(sys.argv[1:])
