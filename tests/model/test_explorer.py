"""The model checker finds what is planted in toys.c, and nothing where nothing is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# The flags keep old garbage, which would split states, out of the stacks.
FLAGS = ["-std=gnu11", "-g", "-O1", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra"]
MISUSE = [["--nonsense"], ["--random", "1"], ["--max-states", "x"], ["--scenario", "none"]]

FOUND = {
    "peterson-late-flag": "is not alone in the critical section",
    "peterson-invariant": "two in the critical section",
    "counter-torn": "an increment was lost: the counter is 1",
    "event-count-cleared-bit": "stuck: not all have finished",
    "event-count-wake-one": "stuck: not all have finished",
    "wake-either": "the second was woken first",
    "choices": "73 was chosen",
    "lock-death": "stuck: not all have finished",
    "stale-judge": "it moved between the look and the proof of its death",
    "livelock": "livelock: from here no end can be reached",
    "crash": "P1 crashed: Segmentation fault",
    "abort": "P1 crashed: Aborted",
    "overflow": "P0 crashed: Segmentation fault",
    "spin": "P0 runs on and on without a point",
}

CLEAN = ["peterson", "counter", "event-count", "event-count-timed", "lock", "lock-death-reaped", "measure"]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler named cc")
    program = tmp_path_factory.mktemp("model") / "toys"
    flags = list(FLAGS)
    probe = [compiler, "-ftrivial-auto-var-init=zero", "-fsyntax-only", "-x", "c", "/dev/null"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        flags.append("-ftrivial-auto-var-init=zero")
    sources = [str(HERE / "explore.c"), str(HERE / "toys.c")]
    subprocess.run([compiler, *flags, *sources, "-o", str(program)], check=True)
    return program


def run(program: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", CLEAN)
def test_a_right_scenario_is_searched_out_and_found_right(toys: Path, name: str) -> None:
    status, text = run(toys, "--scenario", name)
    assert status == 0, text
    assert re.search(rf"^{name}: states=\d+ transitions=\d+ terminals=[1-9]\d* seconds=\S+ OK$", text, re.M)


@pytest.mark.parametrize("name", FOUND)
def test_a_planted_mistake_is_found_and_its_schedule_printed(toys: Path, name: str) -> None:
    status, text = run(toys, "--scenario", name)
    assert status == 1, text
    first, *rest = text.splitlines()
    assert "VIOLATION: " in first
    assert FOUND[name] in first
    assert any("schedule of" in line for line in rest)
    assert any("at the end P0" in line for line in rest)


def test_the_number_of_states_is_that_of_the_product_of_independent_processes(toys: Path) -> None:
    # Four processes of 24 accesses that no other's value decides: 25 places each, and 24 steps from them.
    _, text = run(toys, "--scenario", "measure")
    assert f"states={25**4} transitions={4 * 24 * 25**3} terminals=1 " in text


def test_every_choice_is_explored_once(toys: Path) -> None:
    _, text = run(toys, "--scenario", "choices", "--quiet")
    assert "VIOLATION: 73 was chosen" in text
    # 73 is the 74th end, after 00 .. 72.
    assert "terminals=74 " in text


def test_a_schedule_names_the_lines_and_the_changes_of_memory(toys: Path) -> None:
    _, text = run(toys, "--scenario", "counter-torn")
    assert "shared+" in text
    if shutil.which("addr2line"):
        assert "store at toys.c:" in text


def test_a_printed_schedule_has_the_fewest_preemptions_and_then_the_fewest_moves(toys: Path) -> None:
    _, text = run(toys, "--scenario", "lock-death")
    # Look, take, die; the other looks, sleeps.  Nobody was left who could have gone on.
    assert "schedule of 5 moves, preemptions: 0 " in text
    assert "(no schedule has fewer, and with these none is shorter)" in text


def test_a_stale_look_before_a_proof_of_death_is_explored(toys: Path) -> None:
    _, text = run(toys, "--scenario", "stale-judge")
    assert re.search(r"P1 .*\n.* P0 .*\n.* P0  DIES .*\n.* P1 ", text)


def test_livelocks_are_not_looked_for_when_told_so(toys: Path) -> None:
    status, text = run(toys, "--scenario", "livelock", "--no-livelock")
    assert status == 0, text


def test_a_search_that_meets_a_bound_is_incomplete_and_not_ok(toys: Path) -> None:
    for bound in (["--max-states", "1000"], ["--max-memory", "1"]):
        status, text = run(toys, "--scenario", "measure", *bound)
        assert status == 2
        assert "INCOMPLETE" in text
        assert " OK" not in text


def test_memory_that_was_not_registered_is_noticed(toys: Path) -> None:
    status, text = run(toys, "--scenario", "unregistered")
    assert status == 2
    assert "is all memory registered?" in text


def test_a_random_walk_finds_a_planted_mistake_again_from_its_printed_seed(toys: Path) -> None:
    status, text = run(toys, "--scenario", "event-count-cleared-bit", "--random", "1", "20000")
    assert status == 1
    again = re.search(r"found by (--random \d+ 1)\b", text)
    assert again is not None
    status, text = run(toys, "--scenario", "event-count-cleared-bit", *again.group(1).split())
    assert status == 1


def test_random_walks_find_nothing_where_nothing_is(toys: Path) -> None:
    for name in ("event-count", "lock-death-reaped"):
        status, text = run(toys, "--scenario", name, "--random", "7", "300")
        assert status == 0, text
        assert "WALKED" in text
        assert " OK" not in text


def test_schedules_with_few_preemptions_are_not_called_ok(toys: Path) -> None:
    status, text = run(toys, "--scenario", "counter-torn", "--preemptions", "0")
    assert status == 0
    assert "BOUNDED" in text
    assert " OK" not in text
    status, text = run(toys, "--scenario", "counter-torn", "--preemptions", "1")
    assert status == 1
    assert "an increment was lost" in text


def test_enough_preemptions_reach_every_terminal_state(toys: Path) -> None:
    for name in ("event-count-cleared-bit", "stale-judge", "peterson-late-flag"):
        status, text = run(toys, "--scenario", name, "--preemptions", "4")
        assert status == 1
        assert FOUND[name] in text


def test_a_walk_without_an_end_is_not_ok(toys: Path) -> None:
    status, text = run(toys, "--scenario", "livelock", "--random", "1", "200", "--max-walk", "1000")
    assert status == 2
    assert "INCOMPLETE" in text


@pytest.mark.parametrize("arguments", MISUSE)
def test_misuse_ends_with_status_2(toys: Path, arguments: list[str]) -> None:
    status, text = run(toys, *arguments)
    assert status == 2
    assert text
