"""What the tests of regions share."""

import contextlib
import faulthandler
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def is_mapped(address: int) -> bool:
    """Whether this process has a mapping at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
        if start <= address < end:
            return True
    return False


@contextlib.contextmanager
def no_descriptor_is_lost() -> Iterator[None]:
    """As many descriptors are open after the block as before it."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def exit_code_in_a_fork(body: Callable[[], object]) -> int:
    """Run something in a forked child: 0 when it returned, 1 when it raised, -n when signal n ended it."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        try:
            body()
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
