"""The ring core survives every schedule of small scenarios, and mistakes planted in it are found.

The scenarios stand in ring_scenarios.c, what is checked in model_checks.c. The short set runs here; the long
set, in which most bounds are higher or gone, is marked `long`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from model.mutants import MUTANTS
from model.planted import NATIVE, Mutant

HERE = Path(__file__).parent
FLAGS = ["-std=gnu11", "-g", "-O1", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra"]
FLAGS += ["-DSHMBUS_MODEL", f"-I{NATIVE}", f"-I{HERE}"]
CORE = ["event", "group", "lossy", "participant", "reap", "receive", "ring", "send", "wait"]
MODEL = ["explore", "model_checks", "model_os", "model_people", "ring_scenarios"]
SCENARIO = re.compile(r'^ +(?:ENTRY|NO_BROKER)\("([\w-]+)",\s*(\w+),\s*(\w+),\s*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A line of the table in ring_scenarios.c; a bound is "ALL", "WALKS" or a number of preemptions."""

    key: str
    short: str
    long: str
    name: str


SCENARIOS = [Scenario(*found) for found in SCENARIO.findall((HERE / "ring_scenarios.c").read_text())]


class Build:
    """Object files of the model and of the core, linked with or without a mistake."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler named cc")
        self.compiler, self.folder, self.flags = compiler, folder, list(FLAGS)
        probe = [compiler, "-ftrivial-auto-var-init=zero", "-fsyntax-only", "-x", "c", "/dev/null"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            self.flags.append("-ftrivial-auto-var-init=zero")
        self.objects = {name: self.compile(NATIVE / f"{name}.c") for name in CORE}
        self.objects |= {name: self.compile(HERE / f"{name}.c") for name in MODEL}

    def compile(self, source: Path) -> Path:
        target = self.folder / f"{source.stem}.o"
        subprocess.run([self.compiler, *self.flags, "-c", str(source), "-o", str(target)], check=True)
        return target

    def link(self, name: str, **instead: Path) -> Path:
        program = self.folder / name
        objects = [str(path) for path in (self.objects | instead).values()]
        subprocess.run([self.compiler, *objects, "-o", str(program)], check=True)
        return program

    def mutant(self, mutant: Mutant, folder: Path) -> Path:
        source = folder / mutant.file
        source.write_text(mutant.source())
        target = folder / f"{source.stem}.o"
        subprocess.run([self.compiler, *self.flags, "-w", "-c", str(source), "-o", str(target)], check=True)
        return self.link(f"mutant-{MUTANTS.index(mutant)}", **{source.stem: target})


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory.mktemp("ring-model"))


@pytest.fixture(scope="module")
def model(build: Build) -> Path:
    return build.link("ring_model")


def run(program: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def assert_right(program: Path, which: str, scenario: Scenario, bound: str) -> None:
    status, text = run(program, which, scenario.key)
    assert status == 0, text
    result = {"ALL": "OK", "WALKS": "WALKED"}.get(bound, "BOUNDED")
    assert re.search(rf"states=\d+ transitions=\d+ terminals=[1-9]\d* seconds=\S+ {result}$", text, re.M), (
        text
    )
    assert text.startswith(scenario.name)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.key)
def test_nothing_is_lost_torn_doubled_stuck_or_leaked(model: Path, scenario: Scenario) -> None:
    assert_right(model, "short", scenario, scenario.short)


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.key)
def test_nothing_is_wrong_within_the_higher_bounds_either(model: Path, scenario: Scenario) -> None:
    assert_right(model, "long", scenario, scenario.long)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mistake_planted_in_the_core_is_found(build: Build, tmp_path: Path, mutant: Mutant) -> None:
    program = build.mutant(mutant, tmp_path)
    status, text = run(program, "short", mutant.caught_by, "--quiet")
    program.unlink()
    assert status == 1, f"not found, though {mutant.why}: {text}"
    assert "VIOLATION: " in text


def test_the_table_of_scenarios_is_the_one_that_is_compiled(model: Path) -> None:
    for which in ("short", "long"):
        status, text = run(model, which, "list")
        assert status == 0
        listed = [line.split("\t") for line in text.splitlines()]
        assert [(key, name) for key, _, name in listed] == [(entry.key, entry.name) for entry in SCENARIOS]


def test_each_scenario_and_each_mutant_has_a_name_of_its_own() -> None:
    keys, names = [entry.key for entry in SCENARIOS], [mutant.name for mutant in MUTANTS]
    assert len(set(keys)) == len(keys)
    assert len(set(names)) == len(names)
    assert {mutant.caught_by for mutant in MUTANTS} <= set(keys)


def test_a_mutant_whose_text_is_gone_says_so() -> None:
    stale = Mutant("stale", "send.c", (("no such text", ""),), "one-to-one", "it is stale")
    with pytest.raises(ValueError, match="0 times, not once"):
        stale.source()
