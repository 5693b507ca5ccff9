"""Build the wheel, look into it, and use it from a clean environment.

    python3 .ci/wheel.py

The wheel has to be of the stable ABI (cp311-abi3), to carry no C sources, to keep to the ABI that it names
(abi3audit), and to work from an environment that holds nothing but it and what it asks for: under the Python
that runs this and each later one that is found on PATH.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import env

#: The least that shows that the compiled core, its Python face and the dependencies are all there.
USE = """
import shmbus
channel = shmbus.channel("64 KiB")
with channel.consumer() as rx, channel.producer() as tx:
    tx.send({"answer": 42})
    assert rx.recv(timeout=30) == {"answer": 42}
"""


def build(folder: Path) -> Path:
    """Build the wheel into a folder, in a build environment of its own; returns it."""
    shutil.rmtree(
        env.ROOT / "build", ignore_errors=True
    )  # what is left there of an earlier build would go in
    pip = [str(env.environment({"dev"}) / "bin" / "python"), "-m", "pip"]
    wheel = [
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(env.ROOT),
    ]
    env.run_or_end([*pip, *wheel])
    (built,) = folder.glob("*.whl")
    return built


def look_into(wheel: Path) -> None:
    """Check its tag, its contents and what its core asks of the interpreter."""
    if not re.fullmatch(r"shmbus-[^-]+-cp311-abi3-linux_\w+\.whl", wheel.name):
        sys.exit(f"{wheel.name} is not tagged cp311-abi3")
    names = zipfile.ZipFile(wheel).namelist()
    sources = [
        name for name in names if name.endswith((".c", ".h")) or name.startswith(("tests/", "examples/"))
    ]
    needed = {"shmbus/__init__.py", "shmbus/_core.abi3.so", "shmbus/_core.pyi", "shmbus/py.typed"}
    if sources or not needed <= set(names):
        sys.exit(f"{wheel.name}: not to be in it: {sources}; missing: {sorted(needed - set(names))}")
    env.run_or_end([str(env.environment({"dev"}) / "bin" / "abi3audit"), "--strict", str(wheel)])
    print(f"{wheel.name}: {len(names)} files, keeps to the stable ABI")


def pythons() -> list[str]:
    """The Python that runs this, and later ones that are there and work."""
    found = [sys.executable]
    for minor in range(sys.version_info.minor + 1, 20):
        python = shutil.which(f"python3.{minor}")
        if python and env.run_quietly([python, "-c", "import venv, ensurepip"]):
            found.append(python)
    return found


def use(wheel: Path, python: str, folder: Path) -> None:
    """Install the wheel into an environment of its own and use it from elsewhere."""
    if python == sys.executable:
        pip = env.make_venv(folder)
    else:
        env.run_or_end([python, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip"]
    env.pip_install(pip, str(wheel))
    inside = str(folder / "bin" / "python")
    subprocess.run([inside, "-I", "-W", "error", "-c", USE], cwd=folder, check=True)
    subprocess.run(
        [str(folder / "bin" / "shmbus"), "--help"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    said = subprocess.run([inside, "--version"], capture_output=True, text=True, check=True)
    print(f"works from a clean environment of {said.stdout.strip()}")


def main() -> None:
    """Build, look, use."""
    with tempfile.TemporaryDirectory(prefix="shmbus-wheel-") as name:
        folder = Path(name)
        wheel = build(folder)
        look_into(wheel)
        for number, python in enumerate(pythons()):
            use(wheel, python, folder / f"venv{number}")


if __name__ == "__main__":
    main()
