"""Style that matters is a test: rooms, public names, weight of the import, lengths of files, sleeps, C."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "shmbus"
NATIVE = PACKAGE / "_native"
TESTS = ROOT / "tests"

# ---- rooms

#: Top to bottom: a room may import itself and the rooms below it. `broker` is broker.py and broker_*.py.
ROOMS = [
    ["cli", "__main__"],
    ["bench"],
    ["lab"],
    ["mp"],
    ["futures"],
    ["aio"],
    ["__init__"],
    ["bus"],
    ["workers", "worker", "launch"],
    ["broker"],
    ["client", "places"],
    ["control"],
    ["channel"],
    ["codec"],
    ["ring"],
    ["region", "backing", "protection", "space"],
    ["settings"],
    ["errors", "limits"],
    ["_core"],
]

#: Imports that point upwards all the same: (importing module, imported module): why it has to be.
UPWARD: dict[tuple[str, str], str] = {}

#: What `import shmbus` is not to bring along.
HEAVY = {"anyio", "asyncio", "click", "msgspec", "multiprocessing", "numpy", "rich"}

#: More lines than this need a reason below.
LONGEST_FILE = 440

#: Files that are longer: why they are one idea all the same.
LONG_FILES: dict[str, str] = {
    f"shmbus/_native/{name}": "the types of one handle: methods, what help() says of them, slots"
    for name in ["py_consumer.c", "py_producer.c", "py_region.c", "py_ring.c"]
} | {
    "shmbus/_native/receive.c": "one protocol: what a cursor, a lease and an orphan are to each other",
    "shmbus/region.py": "one class, the whole of its face; half of it is what help() says",
    "tests/model/explore.c": "one search, with its theory",
    "tests/native/test_ring_states.c": "one table of hard states, each set directly",
    "tests/test_broker_process.py": "one process, from its start to its end",
}

#: Test files that may mention a sleep: why.
SLEEPERS = {
    "harness/leaks.py": "the clock of the leak check; injected, and tests of it bring their own",
    "test_structure.py": "looks for the others",
}


def python_modules() -> dict[str, Path]:
    """Every Python module of the package by its dotted name without the leading `shmbus.`."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        modules[name] = path
    return modules


MODULES = python_modules()
C_FILES = sorted([*NATIVE.glob("*.c"), *NATIVE.glob("*.h")])


def room_of(module: str) -> int | None:
    """The index of a module's room in ROOMS; None if it is in none."""
    top = module.split(".")[0]
    for index, names in enumerate(ROOMS):
        if any(top == name or top.startswith(f"{name}_") for name in names):
            return index
    return None


class Import(NamedTuple):
    """One import of the package by the package."""

    by: str
    of: str
    line: int


def imports_of(module: str) -> Iterator[Import]:
    """Every import of the package in a module, at its top, in its functions and under TYPE_CHECKING."""
    path = MODULES[module]
    package = module.split(".")[:-1]  # of a relative import; [] is shmbus itself
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "shmbus":
                    yield Import(module, alias.name.partition(".")[2] or "__init__", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
            elif (node.module or "").split(".")[0] == "shmbus":
                base = []
            else:
                continue
            words = (node.module or "").split(".") if node.module else []
            base = base + (words if node.level else words[1:])
            for alias in node.names:
                name = ".".join([*base, alias.name])
                known = name in MODULES or f"{name}.__init__" in MODULES or name == "_core"
                yield Import(module, name if known else ".".join(base) or "__init__", node.lineno)


def test_every_module_has_a_room() -> None:
    homeless = [module for module in MODULES if room_of(module) is None]
    assert not homeless, f"say in ROOMS where these belong: {homeless}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    here = room_of(module)
    assert here is not None
    wrong = []
    for found in imports_of(module):
        there = room_of(found.of)
        if (there is None or there < here) and (found.by, found.of) not in UPWARD:
            wrong.append(f"line {found.line} imports shmbus.{found.of}")
    assert not wrong, f"{module} reaches upwards: {wrong}"


def test_upward_imports_that_are_allowed_exist() -> None:
    found = {(entry.by, entry.of) for module in MODULES for entry in imports_of(module)}
    assert set(UPWARD) <= found


# ---- public names


def test_each_public_name_is_exported_once() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    bound: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            bound += [alias.asname or alias.name for alias in node.names]
    public = [name for name in bound if not name.startswith("_")]
    twice = [name for name, count in Counter(public).items() if count > 1]
    assert not twice, f"imported more than once: {twice}"
    import shmbus

    exported = list(getattr(shmbus, "__all__", []))
    assert len(exported) == len(set(exported)), "a name stands twice in __all__"
    missing = [name for name in exported if not hasattr(shmbus, name)]
    assert not missing, f"in __all__ but not there: {missing}"
    forgotten = set(public) - set(exported) - {"annotations"}
    assert not forgotten, f"imported by shmbus/__init__.py but not in __all__: {sorted(forgotten)}"


def test_the_names_that_people_meet_first_are_there() -> None:
    import shmbus

    handles = {"Bus", "Channel", "Producer", "Consumer", "Region", "channel", "connect"}
    choices = {"Advice", "Prot", "Visibility"}
    faults = {
        "Closed",
        "Corrupt",
        "DecodeError",
        "EncodeError",
        "EndOfChannel",
        "NoBroker",
        "NoSpace",
        "PeerDied",
    }
    faults |= {"Refused", "ShmbusError", "TimedOut", "TooLarge", "WorkerFailed", "WouldBlock"}
    assert handles | choices | faults <= set(getattr(shmbus, "__all__", []))


def test_importing_shmbus_stays_light() -> None:
    code = "import sys; before = set(sys.modules); import shmbus; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & HEAVY


# ---- files


def own_text_files() -> list[Path]:
    """Every text file that the project's people write."""
    places = [PACKAGE, TESTS, ROOT / "examples", ROOT / ".ci"]
    endings = {".py", ".pyi", ".c", ".h", ".md", ""}
    found = [path for place in places for path in place.rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file() and path.suffix in {".md", ".toml"}]
    return [path for path in found if path.suffix in endings | {".toml"} and "__pycache__" not in path.parts]


def test_a_file_holds_one_idea_and_is_read_in_one_sitting() -> None:
    code = [path for path in own_text_files() if path.suffix in {".py", ".pyi", ".c", ".h"}]
    too_long = {}
    for path in code:
        name = str(path.relative_to(ROOT))
        lines = len(path.read_text().splitlines())
        if lines > LONGEST_FILE and name not in LONG_FILES:
            too_long[name] = lines
    assert not too_long, f"split these, or say in LONG_FILES why not: {too_long}"


def test_reasons_for_long_files_are_still_needed() -> None:
    for name in LONG_FILES:
        lines = len((ROOT / name).read_text().splitlines())
        assert lines > LONGEST_FILE, f"{name} has {lines} lines by now: its reason can go"


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in own_text_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if later.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_test_sleeps() -> None:
    sleep = re.compile(
        r"\btime\.sleep\(|\bfrom time import .*\bsleep\b|\b(asyncio|anyio|trio)\.sleep\((?!0\))"
    )
    c_sleep = re.compile(r"\b(usleep|nanosleep|clock_nanosleep|sleep|thrd_sleep)\s*\(")
    found = []
    for path in [*TESTS.rglob("*.py"), *TESTS.rglob("*.[ch]")]:
        name = str(path.relative_to(TESTS))
        pattern = sleep if path.suffix == ".py" else c_sleep
        text = path.read_text() if path.suffix == ".py" else without_comments(path.read_text())
        found += [f"{name}: {match[0]}" for match in pattern.finditer(text) if name not in SLEEPERS]
    assert not found, f"wait for what is to happen instead: {found}"


# ---- C


def without_comments(text: str) -> str:
    """C text with comments, and what stands in strings, blanked; lines stay where they are."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.DOTALL)


def lines_with(pattern: str, path: Path) -> list[str]:
    """`name:line: text` for each line of code (not of comments) that the pattern is found in."""
    lines = without_comments(path.read_text()).splitlines()
    return [
        f"{path.name}:{number}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        if re.search(pattern, line)
    ]


#: Files beside atomics.h that spell atomics: what of, since it is not the ring's shared words.
ATOMICS = {
    "atomics.h": "the one place for shared words",
    "os_linux.c": "counters and caches private to the process",
    "region.c": "touches each page of a region that others may be using; decides nothing on what it reads",
}


def test_atomics_are_spelled_in_one_file() -> None:
    spelled = r"_Atomic|\b__atomic_|\b__sync_|\batomic_\w+|\bmemory_order|stdatomic"
    found = [line for path in C_FILES if path.name not in ATOMICS for line in lines_with(spelled, path)]
    assert not found, "\n".join(found)


def test_there_are_no_bare_fences() -> None:
    fences = r"\batomic_(thread|signal)_fence\b|\b__sync_synchronize\b|\b__atomic_(thread|signal)_fence\b"
    found = [line for path in C_FILES for line in lines_with(fences + r"|\b(m|l|s)fence\b|\bdmb\b", path)]
    assert not found, "\n".join(found)


ONE_SIDED = re.compile(r"\b(?:load_acquire|store_release)\(\s*&?(?:\w+(?:\[\w+\])?(?:->|\.))*(\w+)")
WINDOW = 15  # lines above an access in which its comment stands


def one_sided_accesses() -> Iterator[tuple[Path, int, str]]:
    """Each acquire and each release of the core: file, line, the word that it reads or writes."""
    for path in C_FILES:
        if path.name == "atomics.h":
            continue
        for number, line in enumerate(without_comments(path.read_text()).splitlines(), 1):
            for match in ONE_SIDED.finditer(line):
                yield path, number, match[1]


def test_every_acquire_and_release_names_its_other_end() -> None:
    """Near the access, or where the word is declared in layout.h."""
    layout = (NATIVE / "layout.h").read_text()
    # A comment that speaks of pairs, behind the declaration or above it.
    comment = r"/\*(?:(?!\*/).)*?\bpairs\b(?:(?!\*/).)*?\*/"
    behind = re.findall(rf"shared_u(?:64|32) (\w+);[ \t]*{comment}", layout, re.DOTALL)
    above = re.findall(rf"{comment}\s*shared_u(?:64|32) (\w+);", layout, re.DOTALL)
    explained = {*behind, *above}
    silent = []
    for path, number, word in one_sided_accesses():
        if word in explained:
            continue
        near = "\n".join(path.read_text().splitlines()[max(0, number - WINDOW) : number])
        if not re.search(r"\bpairs? with\b", near, re.IGNORECASE):
            silent.append(f"{path.name}:{number}: {word}")
    assert not silent, "say near these what each one pairs with:\n" + "\n".join(silent)


def test_what_a_comment_pairs_with_exists() -> None:
    code = "\n".join(without_comments(path.read_text()) for path in C_FILES)
    stale = []
    for path in C_FILES:
        text = re.sub(r"\n\s*(\*|//)?\s*", " ", path.read_text())  # sentences go over lines
        for match in re.finditer(r"\b[Pp]airs? with (?:the )?(?:\w+ of |\w+ in )?`?(\w+)", text):
            name = match[1]
            looks_like_code = "_" in name
            if looks_like_code and not re.search(rf"\b{name}\b", code):
                stale.append(f"{path.name}: pairs with {name}")
    assert not stale, f"named in comments, gone from the code: {stale}"


INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def headers_reached_from(path: Path) -> set[str]:
    """Names of all headers that a file includes, directly or through the core's own headers."""
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        for name in INCLUDE.findall(waiting.pop().read_text()):
            if name not in seen:
                seen.add(name)
                if (NATIVE / name).exists():
                    waiting.append(NATIVE / name)
    return seen


def test_only_files_named_for_it_know_python() -> None:
    for path in NATIVE.glob("*.c"):
        for_python = path.name == "module.c" or path.name.startswith("py_")
        assert ("Python.h" in headers_reached_from(path)) == for_python, path.name


def test_python_h_is_included_in_one_place() -> None:
    direct = [path.name for path in C_FILES if "Python.h" in INCLUDE.findall(path.read_text())]
    assert direct == ["pycore.h"]
    for path in C_FILES:
        twice = [name for name, count in Counter(INCLUDE.findall(path.read_text())).items() if count > 1]
        assert not twice, f"{path.name} includes {twice} more than once"


def test_the_build_knows_every_c_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extension,) = project["tool"]["setuptools"]["ext-modules"]
    sources = sorted(str(path.relative_to(ROOT)) for path in NATIVE.glob("*.c"))
    headers = sorted(str(path.relative_to(ROOT)) for path in NATIVE.glob("*.h"))
    assert sorted(extension["sources"]) == sources
    assert sorted(extension["depends"]) == headers, (
        "headers travel in the sdist, and rebuild, through depends"
    )


def test_the_layout_limits_agree_with_pythons() -> None:
    from shmbus import limits

    layout = (NATIVE / "layout.h").read_text()
    defined = dict(re.findall(r"^#define (\w+) (\d+)u?\b", layout, re.MULTILINE))
    shared = sorted(name for name in defined if hasattr(limits, name))
    assert shared
    for name in shared:
        assert int(defined[name]) == getattr(limits, name), name
