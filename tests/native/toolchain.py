"""Compile C tests with the ring core, in each flavour, and run them.

The core is what lies in shmbus/_native and does not know Python: all but module.c and py_*.c.  It becomes
one archive for each flavour, so a program that defines os_futex_wait and its siblings itself is linked
without os_linux.c.

ThreadSanitizer of older compilers crashes, mostly, where the kernel spreads addresses widely
(vm.mmap_rnd_bits over 28).  So programs are started with randomisation switched off, by personality(2),
which needs no rights; a container's filter may still forbid the call, and then the run says what to change.
"""

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "shmbus" / "_native"
HERE = Path(__file__).resolve().parent

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes"]
COMMON = ["-std=c11", "-D_GNU_SOURCE", "-g", "-pthread", f"-I{NATIVE}", f"-I{HERE}", *WARNINGS]
FLAVOURS = {
    "plain": ["-O2"],
    "thread": ["-O1", "-fsanitize=thread", "-DSHMBUS_TSAN"],
    "address": [
        "-O1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ],
}
SANITIZER_OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=1 second_deadlock_stack=1 history_size=4",
    "ASAN_OPTIONS": "detect_leaks=1 strict_string_checks=1 detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1 halt_on_error=1",
}

#: Becomes the program named by its arguments, with addresses in their usual places.
LAUNCHER = """
import ctypes, os, sys
ADDR_NO_RANDOMIZE = 0x0040000
if ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE) < 0 and sys.argv[1] == "thread":
    if int(open("/proc/sys/vm/mmap_rnd_bits").read()) > 28:
        sys.exit("addresses are too random")
os.execv(sys.argv[2], sys.argv[2:])
"""

TOO_RANDOM = "addresses are too random"
HOW_TO_CALM = (
    "the thread sanitizer cannot run here: addresses are spread too widely and personality(2) is forbidden; "
    "allow that call, or set vm.mmap_rnd_bits=28"
)


class BuildError(Exception):
    """A compiler or linker failed; the text is what it printed."""


class UnavailableError(Exception):
    """The machine lacks what a flavour needs; the text says what and what to do."""


def do_without(reason: str) -> NoReturn:
    """Do without a flavour that the machine lacks, except where the project's word is given."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def compiler() -> list[str]:
    """The C compiler: $CC, or the first usual name that is found."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if found is None:
        raise UnavailableError("no C compiler: none of cc, gcc and clang is on PATH")
    return [found]


def core_sources() -> list[Path]:
    """The C files of the core; that they do not include Python.h is tested in test_structure.py."""
    return [path for path in sorted(NATIVE.glob("*.c")) if not path.name.startswith(("py_", "module"))]


def call(command: list[str]) -> None:
    """Run a compiler.

    Raises:
        BuildError: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


@dataclass
class Flavour:
    """The core compiled one way, in a folder of its own."""

    name: str
    folder: Path

    @property
    def archive(self) -> Path:
        """The core's objects."""
        return self.folder / "core.a"

    def prepare(self) -> None:
        """Make the folder and see that programs of this flavour can be linked.

        Raises:
            UnavailableError: They cannot.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / "probe.c"
        probe.write_text("int main(void) { return 0; }\n")
        try:
            self.program(probe, core=False)
        except BuildError as error:
            text = f"{compiler()[0]} cannot link {self.name} programs (libtsan, libasan, libubsan): {error}"
            raise UnavailableError(text) from error

    def build(self) -> None:
        """Compile the core.

        Raises:
            UnavailableError: The machine cannot do this flavour at all.
            BuildError: The core does not compile.
        """
        self.prepare()
        objects = [self.folder / f"{source.stem}.o" for source in core_sources()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._compile, core_sources(), objects))
        call([os.environ.get("AR", "ar"), "rcs", str(self.archive), *map(str, objects)])

    def program(self, source: Path, *, core: bool = True) -> Path:
        """Compile a test, link it with the core if that is wanted, and return the program.

        Raises:
            BuildError: It does not compile or link.
        """
        program = self.folder / source.stem
        inputs = [str(source), str(self.archive)] if core else [str(source)]
        call([*compiler(), *COMMON, *FLAVOURS[self.name], *inputs, "-o", str(program)])
        return program

    def run(self, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        Raises:
            UnavailableError: The sanitizer cannot run on this machine.
        """
        environment = dict(os.environ, **SANITIZER_OPTIONS)
        command = [sys.executable, "-I", "-c", LAUNCHER, self.name, str(program), *arguments]
        nothing = subprocess.DEVNULL
        done = subprocess.run(command, env=environment, stdin=nothing, capture_output=True, text=True)
        if self.name == "thread" and done.returncode and TOO_RANDOM in done.stderr:
            raise UnavailableError(HOW_TO_CALM)
        return done

    def _compile(self, source: Path, target: Path) -> None:
        call([*compiler(), *COMMON, *FLAVOURS[self.name], "-c", str(source), "-o", str(target)])
