"""How much room there is, and which limit a request for memory ran into.

Allocating more memory than there is does not fail by itself: the kernel goes on until it has to kill a
process. Hence the room is looked up first, in ``/proc/meminfo`` and in the limits of the control group.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from typing import Final

from shmbus.errors import NoSpace

__all__ = ["SPACE_ERRORS", "check_file_system_room", "check_memory_room", "explain_no_space", "size_in_words"]

SPACE_ERRORS: Final = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT})
"""What system calls say when something has run out."""


def check_memory_room(
    needed_bytes: int, what: str, *, proc: str = "/proc", cgroups: str = "/sys/fs/cgroup"
) -> None:
    """See whether the machine has so much memory, before the kernel finds out by killing a process.

    Args:
        needed_bytes: what will be allocated.
        what: what it is for, in the error.
        proc: where proc is mounted.
        cgroups: where the control groups are mounted.

    Raises:
        NoSpace: the machine, or a control group around this process, has less than that available.
    """
    available, swap = _machine_room(proc)
    if available is not None and needed_bytes > available + swap:
        raise NoSpace(
            f"{what} needs {size_in_words(needed_bytes)}, and the machine has "
            f"{size_in_words(available + swap)} available (MemAvailable + SwapFree in {proc}/meminfo); "
            "ask for less, or free some memory",
            needed_bytes=needed_bytes,
        )
    for folder, limit, room in _cgroup_rooms(proc, cgroups):
        if needed_bytes <= room + swap:
            continue
        room += _cached_bytes(folder)
        if needed_bytes > room + swap:
            raise NoSpace(
                f"{what} needs {size_in_words(needed_bytes)}, and the control group has "
                f"{size_in_words(room + swap)} left ({limit}); "
                "ask for less, or raise that limit (docker run --memory)",
                needed_bytes=needed_bytes,
            )


def check_file_system_room(fd: int, needed_bytes: int, what: str) -> None:
    """See whether the file system has so much room, without filling it up for everybody to find out.

    Raises:
        NoSpace: it has less than that free.
    """
    status = os.fstatvfs(fd)
    if status.f_blocks and needed_bytes > status.f_bavail * status.f_frsize:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise explain_no_space(full, needed_bytes, what, fd)


def explain_no_space(error: OSError, needed_bytes: int, what: str, fd: int | None = None) -> NoSpace:
    """The error for a system call that ran out of something, naming the limit that it ran into.

    Args:
        error: what the call said.
        needed_bytes: what was asked for.
        what: what it was for.
        fd: the descriptor of the file, when there is one.
    """
    if error.errno == errno.EFBIG:
        limit = f"{_rlimit('RLIMIT_FSIZE')} or the file system's largest file; raise it with ulimit -f"
    elif error.errno == errno.EDQUOT:
        limit = "the disk quota of this user; free some, or use another file system"
    elif error.errno in (errno.ENOMEM, errno.EAGAIN):
        limit = (
            f"{_rlimit('RLIMIT_AS')}, {_rlimit('RLIMIT_DATA')}, the machine's memory or its policy "
            "(vm.overcommit_memory, vm.max_map_count); ask for less"
        )
    else:
        advice = "ask for less, free some, or make it larger (docker run --shm-size)"
        limit = f"{_file_system_state(fd)}; {advice}"
    return NoSpace(f"{what} needs {size_in_words(needed_bytes)}, beyond {limit}", needed_bytes=needed_bytes)


def explain_lock(needed_bytes: int, what: str) -> NoSpace:
    """The error for an mlock that was refused."""
    return NoSpace(
        f"locking {what} needs {size_in_words(needed_bytes)}, beyond {_rlimit('RLIMIT_MEMLOCK')}; "
        "raise it with ulimit -l",
        needed_bytes=needed_bytes,
    )


def size_in_words(value_bytes: int) -> str:
    """A size to read: ``1.5 MiB (1572864 bytes)``."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value_bytes >= 1 << shift:
            return f"{value_bytes / (1 << shift):.1f} {unit} ({value_bytes} bytes)"
    return f"{value_bytes} bytes"


def _file_system_state(fd: int | None) -> str:
    if fd is None:
        return "the room on its file system"
    status = os.fstatvfs(fd)
    where = "its file system"
    if os.path.isdir("/dev/shm") and os.fstat(fd).st_dev == os.stat("/dev/shm").st_dev:
        where = "/dev/shm"
    free, whole = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    return f"the room on {where}: {size_in_words(free)} free of {size_in_words(whole)}"


def _rlimit(name: str) -> str:
    soft = resource.getrlimit(getattr(resource, name))[0]
    return f"{name} ({'unlimited' if soft == resource.RLIM_INFINITY else size_in_words(soft)})"


def _machine_room(proc: str) -> tuple[int | None, int]:
    """MemAvailable (None: unknown) and SwapFree in bytes."""
    found = dict(re.findall(r"^(MemAvailable|SwapFree):\s*([0-9]+) kB$", _read(f"{proc}/meminfo"), re.M))
    available = int(found["MemAvailable"]) << 10 if "MemAvailable" in found else None
    return available, int(found.get("SwapFree", "0")) << 10


def _cgroup_rooms(proc: str, cgroups: str) -> Iterator[tuple[str, str, int]]:
    """The memory limits around this process: the folder and the file of each, and the bytes left under it."""
    for line in _read(f"{proc}/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage = cgroups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = f"{cgroups}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([root, *parts[:depth]])
            limit_text = _read(f"{folder}/{limit}").strip()
            if not limit_text.isdigit():
                continue  # "max", or no such file at the root
            usage_text = _read(f"{folder}/{usage}").strip()
            if usage_text.isdigit():
                yield folder, f"{folder}/{limit}", max(int(limit_text) - int(usage_text), 0)


def _cached_bytes(folder: str) -> int:
    """File pages that a control group has cached: counted as used, and given up when memory is wanted."""
    found = re.search(r"^(?:total_)?inactive_file ([0-9]+)$", _read(f"{folder}/memory.stat"), re.M)
    return int(found[1]) if found else 0


def _read(path: str) -> str:
    # Without the layers of open(): this is done for every region that is made.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 1 << 16).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
