"""Where a bus lives: its folder and its socket, and the checks that nobody else has laid them out.

A named bus is ``<folder>/<bus>.sock``, the folder being ``$XDG_RUNTIME_DIR/shmbus``, or
``<tempdir>/shmbus-<uid>`` where there is no such variable or it names no folder of this user's (after ``su``
it names another's). Both ends compute it alike. The folder has to be a real folder (no symbolic link), this
user's, and closed to everybody else; whoever could write to it could put a broker of his own there. Nothing
is repaired: a folder that is not so is Refused.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from shmbus import limits
from shmbus.errors import Refused

__all__ = [
    "check_socket_path",
    "make_private_folder",
    "remove_private_folder",
    "runtime_folder",
    "socket_path",
]


def runtime_folder(*, create: bool = False) -> str:
    """The folder of this user's named buses.

    Args:
        create: make it if it is not there.

    Raises:
        Refused: it is there and is not a folder of this user's that is closed to others, or it cannot be
            made.
    """
    base = _runtime_base()
    folder = os.path.join(base, "shmbus") if base else os.path.join(_temporary(), f"shmbus-{os.geteuid()}")
    if create:
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise Refused(f"the folder {folder} for sockets cannot be made: {error.strerror}") from None
    _check_folder(folder)
    return folder


def socket_path(bus_name: str) -> str:
    """The socket of a named bus of this user's, whether anybody listens there or not.

    Raises:
        Refused: the name is not possible, the path is too long, or the folder is not safe.
    """
    from shmbus.settings import check_bus_name  # an embedded broker has no name to check, and starts sooner

    name = check_bus_name(bus_name)
    return check_socket_path(os.path.join(runtime_folder(), f"{name}.sock"))


def check_socket_path(path: str) -> str:
    """The path, absolute, if it can be a socket's.

    Raises:
        Refused: it is empty, or longer than a socket's path can be.
    """
    if not path or "\0" in path:
        raise Refused(f"{path!r} is no path of a socket")
    path = os.path.abspath(path)
    size = len(os.fsencode(path))
    if size > limits.SOCKET_PATH_BYTES:
        raise Refused(
            f"the socket path {path} has {size} bytes, and the limit is {limits.SOCKET_PATH_BYTES} "
            "(SOCKET_PATH_BYTES); use a shorter bus name, or a shorter XDG_RUNTIME_DIR or TMPDIR"
        )
    return path


def make_private_folder() -> str:
    """Makes a new folder that only this user can enter, for an embedded bus.

    Raises:
        Refused: it cannot be made.
    """
    base = _runtime_base() or _temporary()
    while True:
        folder = os.path.join(base, f"shmbus-{os.urandom(6).hex()}")
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise Refused(
                f"the folder {folder} for the socket of an embedded bus cannot be made: {error.strerror}"
            ) from None
        return folder


def remove_private_folder(folder: str) -> None:
    """Removes the folder of an embedded bus, and what a broker puts into it; nothing else."""
    with suppress(OSError):
        for name in ("bus.sock", "bus.lock"):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def _runtime_base() -> str | None:
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(base):
        return None
    try:
        found = os.stat(base)
    except OSError:
        return None
    return base if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() else None


def _temporary() -> str:
    import tempfile  # only where there is no XDG_RUNTIME_DIR: it takes as long to import as all of this

    return os.path.abspath(tempfile.gettempdir())


def _check_folder(folder: str) -> None:
    try:
        found = os.lstat(folder)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return  # nobody has made it, so nobody listens there
        raise Refused(f"the folder {folder} for sockets cannot be looked at: {error.strerror}") from None
    if stat.S_ISLNK(found.st_mode):
        raise Refused(f"{folder} is a symbolic link, and sockets are not trusted to one; remove it")
    if not stat.S_ISDIR(found.st_mode):
        raise Refused(f"{folder} is no folder; remove it")
    if found.st_uid != os.geteuid():
        raise Refused(
            f"the folder {folder} belongs to user {found.st_uid}, not to you ({os.geteuid()}); "
            "set XDG_RUNTIME_DIR to a folder of your own"
        )
    if found.st_mode & 0o077:
        raise Refused(
            f"the folder {folder} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"chmod 700 {folder}"
        )
