"""Run a command in the project's own environment, making or refreshing that environment first.

    python3 .ci/env.py shmbus demo
    python3 .ci/env.py pytest tests/test_codec.py

The environment is a venv under .venv/, one for each interpreter that this file was run with.  The package
is installed into it in editable form with its native core compiled, so Python sources are always the ones in
the tree.  What it was made from is written down in a stamp: pyproject.toml, the C sources, the interpreter,
this file.  While the stamp agrees nothing is installed and nothing is fetched.

A missing piece of the system (a C compiler, Python's headers, pip) is named with the command that brings it.
As root on a machine with apt-get, as in a container, it is installed instead.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - said before tomllib is missed
    sys.exit(
        f"shmbus needs Python 3.11 or later, and {sys.executable} is {sys.version.split()[0]}: "
        "run this line with a later one, for example python3.12"
    )

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv"

#: Commands that need more than the package: the extra of pyproject.toml that brings them.
EXTRA_OF_COMMAND = {"pytest": "test", "ruff": "dev", "mypy": "dev", "stubtest": "dev", "abi3audit": "dev"}

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def say(text: str) -> None:
    """Tell the person what is being done; standard output belongs to the command that follows."""
    print(f"[env] {text}", file=sys.stderr, flush=True)


class MissingError(Exception):
    """Something that the machine lacks: why that is believed, and the Debian packages that bring it."""

    def __init__(self, what: str, why: str, packages: Sequence[str]) -> None:
        super().__init__(what)
        self.what = what
        self.why = why.strip()
        self.packages = list(packages)


# ---- what the system must bring


def check_interpreter() -> None:
    """Refuse the interpreters that the native core cannot be built for."""
    if not sys.platform.startswith("linux"):
        sys.exit(f"shmbus runs on Linux only, and this is {sys.platform}")
    if sys.implementation.name != "cpython":
        sys.exit(f"shmbus needs CPython, and {sys.executable} is {sys.implementation.name}")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        sys.exit(
            f"{sys.executable} is a free-threaded build, whose ABI is another one than the core keeps to: "
            "use the usual build"
        )


def compiler() -> list[str]:
    """The C compiler as setuptools will call it: $CC, or the first usual name that is found."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise MissingError("a C compiler", "none of cc, gcc and clang is on PATH", ["gcc", "libc6-dev"])


def check_headers(cc: Sequence[str]) -> None:
    """Compile a few lines that need the C library's and Python's headers."""
    paths = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    includes = [f"-I{path}" for path in sorted(paths)]
    needed: list[tuple[str, str, list[str]]] = [
        ("stdatomic.h", "a C11 compiler", []),
        ("stdlib.h", "the C library's headers", ["libc6-dev"]),
        ("Python.h", f"Python {VERSION}'s headers", [f"libpython{VERSION}-dev"]),
    ]
    for header, what, packages in needed:
        done = subprocess.run(
            [*cc, "-std=c11", "-fsyntax-only", *includes, "-x", "c", "-"],
            input=f"#include <{header}>\nint main(void) {{ return 0; }}\n",
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise MissingError(what, done.stderr or done.stdout, packages)


def install_or_explain(missing: MissingError) -> None:
    """Bring a missing piece with apt-get if we are root and have one; otherwise end by saying what would.

    Raises:
        SystemExit: It cannot be installed from here, or installing it failed.
    """
    apt = shutil.which("apt-get")
    if not (missing.packages and apt and os.geteuid() == 0):
        lines = [
            f"shmbus cannot be built here for lack of {missing.what} (for {sys.executable}):",
            missing.why,
        ]
        if missing.packages:
            lines.append(f"on Debian and Ubuntu: sudo apt-get install {' '.join(missing.packages)}")
        sys.exit("\n".join(lines))
    say(f"for lack of {missing.what}: apt-get install {' '.join(missing.packages)}")
    quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    install = [apt, "install", "-y", "-q", "--no-install-recommends", *missing.packages]
    if not run_quietly(install, quiet):  # lists may be absent or old
        run_or_end([apt, "update", "-q"], quiet)
        run_or_end(install, quiet)


def require_system() -> list[str]:
    """Check the interpreter, the compiler and the headers, installing what may be; returns the compiler."""
    check_interpreter()
    for _attempt in range(4):  # each round mends at most one thing
        try:
            cc = compiler()
            check_headers(cc)
        except MissingError as missing:
            install_or_explain(missing)
        else:
            return cc
    sys.exit("the system's packages were installed, and still something is missing; see the lines above")


# ---- running things


def run_quietly(command: Sequence[str], environment: dict[str, str] | None = None) -> bool:
    """Run, showing nothing; True if it is there and succeeded."""
    quiet = subprocess.DEVNULL
    if shutil.which(command[0]) is None:
        return False
    done = subprocess.run(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet)
    return done.returncode == 0


def run_or_end(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run, and end with all that it printed if it fails."""
    nothing, pipe, joined = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(command, env=environment, stdin=nothing, stdout=pipe, stderr=joined, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout)
        sys.exit(f"[env] failed with status {done.returncode}: {shlex.join(command)}")


# ---- the environment


def make_venv(folder: Path) -> list[str]:
    """Make an empty venv of the running interpreter and return the command that is pip in it.

    Debian keeps ensurepip in a package of its own.  Without it the venv is made without pip, and the pip of
    the interpreter outside puts one into it (it may: PEP 668 is about installing outside of environments).
    """
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    venv = [sys.executable, "-m", "venv"]
    if run_quietly([*venv, str(folder)]):
        return [python, "-m", "pip"]
    shutil.rmtree(folder, ignore_errors=True)
    outer = [sys.executable, "-m", "pip", "--python", python, "install", "pip"]
    if run_quietly([*venv, "--without-pip", str(folder)]) and run_quietly(outer):
        return [python, "-m", "pip"]
    shutil.rmtree(folder, ignore_errors=True)
    why = "neither ensurepip nor a pip of 22.3 or later works in it"
    install_or_explain(MissingError("pip", why, [f"python{VERSION}-venv"]))
    run_or_end([*venv, str(folder)])
    return [python, "-m", "pip"]


def pip_install(pip: Sequence[str], *arguments: str) -> None:
    """pip install, quiet unless it fails."""
    common = ("--disable-pip-version-check", "--no-input", "--quiet")
    run_or_end([*pip, "install", *common, *arguments], dict(os.environ, PIP_USER="0"))


def folder_of_interpreter() -> Path:
    """Where the environment of the running interpreter lives.

    Two 3.11s of one machine get two, and a clone that was moved gets new ones: scripts name their place.
    """
    mark = hashlib.sha256(f"{os.path.realpath(sys.base_prefix)}|{ROOT}".encode()).hexdigest()[:6]
    return ENVIRONMENTS / f"{VERSION}-{mark}"


def made_from() -> str:
    """A digest of everything that the environment is made from."""
    digest = hashlib.sha256(f"{sys.version}|{os.path.realpath(sys.executable)}".encode())
    native = sorted((ROOT / "shmbus" / "_native").glob("*.[ch]"))
    for path in [Path(__file__), ROOT / "pyproject.toml", *native]:
        digest.update(b"%s\0%s\0" % (path.name.encode(), path.read_bytes()))
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run of this file from working on the same environment; it waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ready(folder: Path, stamp: Path, extras: set[str]) -> bool:
    """Whether the environment was made from what is here, with these extras, and the core is in place."""
    try:
        known = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return False
    core = any((ROOT / "shmbus").glob("_core.*so"))
    return known.get("made_from") == made_from() and extras <= set(known.get("extras", ())) and core


def extras_before(stamp: Path) -> set[str]:
    """The extras that an environment already has, so that a refresh keeps them."""
    try:
        return set(json.loads(stamp.read_text())["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def environment(extras: set[str]) -> Path:
    """Make or refresh the environment of the running interpreter and return its folder.

    Args:
        extras: The extras of pyproject.toml that must be in it.
    """
    folder = folder_of_interpreter()
    stamp = folder / "shmbus-stamp.json"
    if ready(folder, stamp, extras):
        return folder
    with locked(ENVIRONMENTS):
        if ready(folder, stamp, extras):
            return folder
        require_system()
        extras = extras | extras_before(stamp)
        pip = [str(folder / "bin" / "python"), "-m", "pip"]
        if not run_quietly([*pip, "--version"]):
            say(f"making {folder.relative_to(ROOT)} for Python {sys.version.split()[0]}; this is done once")
            pip = make_venv(folder)
        say(f"building and installing shmbus{sorted(extras) or ''}")
        stamp.unlink(missing_ok=True)
        before = made_from()
        for old in (ROOT / "shmbus").glob("_core.*so"):  # a process that has it mapped keeps the old file
            old.unlink()
        build_system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
        pip_install(pip, *build_system["requires"])
        wanted = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
        pip_install(pip, "--no-build-isolation", "--editable", wanted)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as new:
            json.dump({"made_from": before, "extras": sorted(extras)}, new)
        os.replace(new.name, stamp)
    return folder


def main(arguments: list[str]) -> None:
    """Become the given command, inside the environment."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(f"usage: python3 .ci/env.py COMMAND [ARGUMENT ...]\n\n{__doc__}")
    extra = EXTRA_OF_COMMAND.get(arguments[0])
    folder = environment({extra} if extra else set())
    binaries = str(folder / "bin")
    path = os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)])
    inside = dict(os.environ, PATH=path, VIRTUAL_ENV=str(folder))
    inside.pop("PYTHONHOME", None)
    command = shutil.which(arguments[0], path=path)
    if command is None:
        sys.exit(f"[env] no such command in {folder.relative_to(ROOT)} or on PATH: {arguments[0]}")
    sys.stdout.flush()
    os.execve(command, [command, *arguments[1:]], inside)


if __name__ == "__main__":
    main(sys.argv[1:])
