"""Rights over memory as types of their own, and what the kernel means when it refuses them.

In C, and in most bindings of it, a protection, an advice and a mapping flag are all small numbers, and one
passed in the place of another is taken for something else without a word. Here each is an enum, and nothing
else will do.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
from typing import Final, NoReturn, TypeVar

from shmbus.errors import Refused
from shmbus.settings import Visibility
from shmbus.space import SPACE_ERRORS, explain_no_space

__all__ = ["READ_WRITE", "Advice", "Prot", "check_kind", "raise_mapping_error", "writes_through"]


class Prot(enum.Flag):
    """What may be done with the bytes of a region; combine with ``|``. No number stands in for it."""

    NONE = 0
    """Nothing: the addresses are taken, and touching them is SIGSEGV."""
    READ = 1
    WRITE = 2
    EXEC = 4


class Advice(enum.Enum):
    """How a region will be used (madvise).

    Left out are DONTFORK, under which a region in a forked child would be a crash, and REMOVE, which would
    take reserved space away again. Faulting pages in is :meth:`Region.populate`.
    """

    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    """Read ahead."""
    DONTNEED = 4
    """Drop the pages here. What a private region had written is lost; shared bytes stay."""
    FREE = 8
    """The kernel may drop the pages when memory is short (private anonymous regions)."""
    MERGEABLE = 12
    UNMERGEABLE = 13
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    """Leave the pages out of core dumps."""
    DODUMP = 17
    WIPEONFORK = 18
    """A forked child sees zeros (private anonymous regions)."""
    KEEPONFORK = 19
    COLD = 20
    """Reclaim these pages before others."""
    PAGEOUT = 21
    """Reclaim these pages now."""
    COLLAPSE = 25
    """Make huge pages of them now (Linux 6.1)."""


READ_WRITE: Final = Prot.READ | Prot.WRITE

_Kind = TypeVar("_Kind", bound=enum.Enum)


def check_kind(name: str, value: object, kind: type[_Kind]) -> None:
    """See that an argument is a member of its enum, and not a number or a member of another.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a member of {kind.__name__} ({_first_of(kind)}), not {value!r}")


def _first_of(kind: type[enum.Enum]) -> str:
    return ", ".join(str(member) for member in list(kind)[:2]) + ", ..."


def writes_through(prot: Prot, visibility: Visibility) -> bool:
    """Whether writes reach the file, which then has to be open for them; the types are checked on the way."""
    check_kind("prot", prot, Prot)
    check_kind("visibility", visibility, Visibility)
    return visibility is Visibility.SHARED and Prot.WRITE in prot


def raise_mapping_error(
    error: OSError, what: str, fd: int, length: int, prot: Prot, visibility: Visibility
) -> NoReturn:
    """Raise what a failed mapping or protection call meant.

    Args:
        error: what the call said.
        what: what was to be mapped, in the words of its user.
        fd: its descriptor, or -1.
        length: bytes.
        prot: what was asked for.
        visibility: what was asked for.

    Raises:
        Refused: the request cannot be granted for this file.
        NoSpace: there is no room for it.
        OSError: the error itself, when it is neither.
    """
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENODEV, errno.EIO, errno.EINVAL, errno.EOVERFLOW):
        raise Refused(_conflict(error, what, fd, f"{prot} and {visibility}")) from error
    if error.errno in SPACE_ERRORS or error.errno == errno.EAGAIN:
        raise explain_no_space(error, length, f"mapping {what}") from error
    raise error


def _conflict(error: OSError, what: str, fd: int, asked: str) -> str:
    opened = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE if fd >= 0 else os.O_RDWR
    if error.errno == errno.EACCES and opened == os.O_WRONLY:
        return f'{what} is open for writing only, and a mapping reads; open it for both ("r+b")'
    if error.errno == errno.EACCES and opened == os.O_RDONLY:
        return (
            f"{asked} conflicts with {what}, which is open for reading only; open it for both "
            '("r+b"), or ask for Prot.READ, or for Visibility.PRIVATE'
        )
    if error.errno == errno.EPERM:
        return f"{what} may not be mapped with {asked}: it is sealed, or its file system is mounted noexec"
    return f"{what} cannot be mapped with {asked}: {error.strerror}"
