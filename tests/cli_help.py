"""For the tests of the command: running it, and running it with a part replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """What the command is to run in: this tree, whatever folder it runs in, and nobody's ideas about output.

    (With PYTHONUNBUFFERED a print is several writes, and those of several workers mix.)
    """
    ideas = ("FORCE_COLOR", "NO_COLOR", "PYTHONUNBUFFERED")
    found = {key: value for key, value in os.environ.items() if key not in ideas}
    return {**found, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", **more}


def command(*words: object) -> list[str]:
    """The command line of ``shmbus`` in this interpreter."""
    return [sys.executable, "-m", "shmbus.cli", *map(str, words)]


def shmbus(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``shmbus`` to its end."""
    return subprocess.run(
        command(*words), env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def started(words: list[str], **more: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, as a shell does."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        process_group=0,
    )


def patched(folder: Path, text: str) -> list[str]:
    """The command line of a program that is ``shmbus`` with something replaced; in its workers too.

    Args:
        folder: for the program.
        text: what is done first; ``work`` is the module of the demo's workers, ``wordcount`` its face.
    """
    program = folder / "patched.py"
    program.write_text(
        "import os, signal, sys\n"
        "import shmbus.cli\n"
        "from shmbus.lab import wordcount, wordcount_work as work\n"
        f"{textwrap.dedent(text)}\n"
        'if __name__ == "__main__":\n'
        "    sys.exit(shmbus.cli.main())\n"
    )
    return [sys.executable, str(program)]


def write_corpus(folder: Path) -> Path:
    """Files that are easy to get wrong: an empty one, long lines, words longer than a record, bytes that are
    no text, a nested folder; and what is not to be counted."""
    (folder / "nested").mkdir(parents=True)
    (folder / "site-packages").mkdir()
    (folder / "folder.py").mkdir()
    (folder / "empty.py").write_bytes(b"")
    (folder / "edges.py").write_bytes(b"alpha beta_1 9lives _x\n" * 400)
    (folder / "long.py").write_bytes(b"x" * 5000 + b" middle " + b"7" * 5000 + b"y")
    (folder / "nested" / "noise.py").write_bytes(bytes(range(256)) * 40 + "größe".encode())
    (folder / "nested" / "plain.py").write_bytes(b"def alpha(): return beta_1\n")
    (folder / "readme.txt").write_bytes(b"not_counted")
    (folder / "site-packages" / "other.py").write_bytes(b"not_counted")
    os.mkfifo(folder / "pipe.py")
    return folder
