"""Compile every C file of the package with all the warnings that it keeps to, as errors.

Here and not in the everyday suite: a later compiler may know new warnings, and a clone is to work with it.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import env

NATIVE = env.ROOT / "shmbus" / "_native"
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wshadow",
    "-Wstrict-prototypes",
]
WARNINGS += ["-Wold-style-definition", "-Wconversion", "-Wpointer-arith", "-Wcast-qual", "-Wundef", "-Wvla"]
WARNINGS += ["-Wimplicit-fallthrough", "-Wformat=2", "-Wnull-dereference"]
#: ISO C has no way from void pointers to functions, which the tables of Python's types are made of; and the
#: one function that an extension exports is declared nowhere.
ONLY_WITHOUT_PYTHON = ["-Wpedantic", "-Wmissing-prototypes"]
LIMITED = ["-DPy_LIMITED_API=0x030B0000"]


def command_for(source: Path) -> list[str]:
    """The command that compiles one file and keeps nothing."""
    knows_python = source.name == "module.c" or source.name.startswith("py_")
    paths = sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")})
    extra = [*LIMITED, *(f"-isystem{path}" for path in paths)] if knows_python else ONLY_WITHOUT_PYTHON
    standard = ["-std=c11", "-O2", "-pthread"]
    return [*env.require_system(), *standard, *WARNINGS, *extra, "-c", str(source), "-o", "/dev/null"]


def main() -> None:
    """Compile them all, show all complaints, and fail if there was one."""
    sources = sorted(NATIVE.glob("*.c"))
    failed = [source.name for source in sources if subprocess.run(command_for(source)).returncode]
    if failed:
        sys.exit(f"not clean: {', '.join(failed)}")
    print(f"{len(sources)} C files compile without a warning")


if __name__ == "__main__":
    main()
