"""The examples, and the lines of the README that people meet first, run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cli_help import ROOT, environment

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def output_of(*words: object) -> str:
    """What a program prints that ends well and has nothing to complain of."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_hello() -> None:
    assert output_of(ROOT / "examples" / "hello.py") == "Hello, world!\nHello, shared memory!\n"


def test_wordcount(tmp_path: Path) -> None:
    texts = ["To be, or not to be", "that is the question", "", "to BE"]
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text(text)
    lines = output_of(ROOT / "examples" / "wordcount.py", *paths).splitlines()
    counted = {word: int(number) for number, word in map(str.split, lines)}
    assert counted == Counter(" ".join(texts).lower().split())


def test_ten_lines() -> None:
    lines = output_of(ROOT / "examples" / "ten_lines.py").splitlines()
    assert sorted(lines) == sorted(f"{n} squared is {n * n}" for n in range(10))


def test_no_example_is_without_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals()}
    assert {path.stem for path in EXAMPLES} <= tested


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 50


def test_the_lines_of_the_readme_work_as_they_stand(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("## Use it")[2]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block
    text = block[1]
    assert text.count("        ...\n") == 1
    program = tmp_path / "program.py"  # with something to send, and something to be seen
    program.write_text("source = range(100)\n" + text.replace("...\n", "print(message, flush=True)\n", 1))
    assert sorted(map(int, output_of(program).split())) == list(range(100))
