"""What a restarted broker looks at before it maps a channel that a client gives back.

Mapping is trust: memory that shrinks is SIGBUS, and a file system that belongs to another process can make
every touch wait. So the descriptors are looked at first, with calls that cannot wait: they are regular files
of this user's; memory is memory that cannot shrink (a sealed memfd) or has no name (POSIX shared memory,
unlinked); files lie on a local file system. Only then is the header read (by ``pread``, in the ring's own
check), and only after that is anything mapped.

A consumer's process may hold the data region read-only. The broker opens it again for writing, which the
file's owner may: that a consumer cannot write is a guard against accidents, not against this user.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import Final

from shmbus.errors import Refused
from shmbus.settings import Backing, ChannelSettings

__all__ = ["check_descriptors"]

_REMOTE: Final = frozenset({"9p", "afs", "autofs", "ceph", "cifs", "nfs", "nfs4", "smb3", "smbfs"})
_PSEUDO: Final = frozenset(
    {
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "mqueue",
        "proc",
        "pstore",
        "securityfs",
        "sysfs",
        "tracefs",
    }
)
"""Of these, a file that claims to be regular may make its reader wait."""
_SEALED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def check_descriptors(descriptors: list[int], settings: ChannelSettings) -> None:
    """Checks control, data and event descriptors of an offered channel, and makes them writable.

    Args:
        descriptors: the three; one that was opened read-only is replaced in the list, and closed.
        settings: as the client states them.

    Raises:
        Refused: one of them is not what it has to be.
    """
    if settings.backing is Backing.ANONYMOUS:
        raise Refused("anonymous memory cannot be given back: it has no descriptors")
    for index, what in enumerate(("control", "data")):
        _check_region(descriptors[index], what, settings.backing)
        if fcntl.fcntl(descriptors[index], fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            try:
                writable = os.open(f"/proc/self/fd/{descriptors[index]}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise Refused(f"the {what} region cannot be opened for writing: {error.strerror}") from None
            os.close(descriptors[index])
            descriptors[index] = writable
    if "eventfd-count" not in _fdinfo(descriptors[2]):
        raise Refused("the third descriptor of an offered channel is an eventfd, and this is none")


def _check_region(descriptor: int, what: str, backing: Backing) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"the {what} region of an offered channel is no regular file")
    if found.st_uid != os.geteuid():
        raise Refused(f"the {what} region of an offered channel belongs to user {found.st_uid}")
    try:
        seals: int | None = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # only memory knows seals
        seals = None
    if backing is Backing.MEMFD and (seals is None or seals & _SEALED != _SEALED):
        raise Refused(f"the {what} region of an offered channel is no memfd that is sealed against shrinking")
    if backing is Backing.SHM and (seals is None or found.st_nlink):
        raise Refused(f"the {what} region of an offered channel is no shared memory without a name")
    if backing is Backing.FILE and seals is None:
        kind = _file_system(descriptor)
        if kind is None or kind in _REMOTE | _PSEUDO or kind.startswith("fuse"):
            raise Refused(
                f"the {what} region of an offered channel lies on a file system of type {kind or 'unknown'}; "
                "it has to be on a disk of this machine or in its memory"
            )


def _fdinfo(descriptor: int) -> dict[str, str]:
    with open(f"/proc/self/fdinfo/{descriptor}") as lines:
        pairs = (line.partition(":") for line in lines)
        return {key: value.strip() for key, _, value in pairs}


def _file_system(descriptor: int) -> str | None:
    mount = _fdinfo(descriptor).get("mnt_id")
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            if left.split(" ", 1)[0] == mount:
                return right.split(" ", 1)[0]
    return None
