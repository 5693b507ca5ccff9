"""Every test_*.c of this folder, linked with the ring core, under each flavour: plain, thread, address.

A program says what it cannot do in a comment of its own:

    not under thread: forks, and the sanitizer follows one process
    has a long run

The second is also started with the argument `long`, in the long version of this run.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from toolchain import FLAVOURS, BuildError, Flavour, UnavailableError, core_sources, do_without

HERE = Path(__file__).resolve().parent
PROGRAMS = sorted(HERE.glob("test_*.c"))
LONG_PROGRAMS = [path for path in PROGRAMS if "has a long run" in path.read_text()]

GetFlavour = Callable[[str], Flavour]


@pytest.fixture(scope="session")
def flavour(tmp_path_factory: pytest.TempPathFactory) -> GetFlavour:
    """The core compiled in a flavour, once a session."""
    built: dict[str, Flavour | Exception] = {}

    def get(name: str) -> Flavour:
        if name not in built:
            new = Flavour(name, tmp_path_factory.mktemp(f"core-{name}"))
            try:
                new.build()
                built[name] = new
            except (BuildError, UnavailableError) as error:
                built[name] = error
        found = built[name]
        if isinstance(found, UnavailableError):
            do_without(str(found))
        if isinstance(found, Exception):
            pytest.fail(str(found), pytrace=False)
        return found

    return get


def run_program(source: Path, built: Flavour, *arguments: str) -> None:
    refused = re.search(rf"not under {built.name}: (.+)", source.read_text())
    if refused:
        pytest.skip(refused[1].rstrip("*/ "))
    try:
        done = built.run(built.program(source), *arguments)
    except BuildError as error:
        pytest.fail(str(error), pytrace=False)
    except UnavailableError as error:
        do_without(str(error))
    print(done.stdout, done.stderr, sep="")
    assert done.returncode == 0, f"{source.name} under {built.name} ended with {done.returncode}"


def test_there_is_a_core_and_something_to_run() -> None:
    assert PROGRAMS
    assert core_sources()


@pytest.mark.patience(300)
@pytest.mark.parametrize("name", FLAVOURS)
def test_the_core_compiles(name: str, flavour: GetFlavour) -> None:
    assert flavour(name).archive.exists()


@pytest.mark.patience(300)
@pytest.mark.parametrize("name", FLAVOURS)
@pytest.mark.parametrize("source", PROGRAMS, ids=lambda path: path.stem)
def test_the_program_ends_well(source: Path, name: str, flavour: GetFlavour) -> None:
    run_program(source, flavour(name))


@pytest.mark.long
@pytest.mark.parametrize("name", FLAVOURS)
@pytest.mark.parametrize("source", LONG_PROGRAMS, ids=lambda path: path.stem)
def test_the_program_ends_well_at_length(source: Path, name: str, flavour: GetFlavour) -> None:
    run_program(source, flavour(name), "long")
