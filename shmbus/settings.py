"""What a channel is made with: its settings, checked once, and the names of things.

A :class:`ChannelSettings` that exists is possible: every field was checked when it was made, whether it came
from a user's keywords or over the control protocol. Whatever is wrong is :class:`~shmbus.errors.Refused`,
naming the setting and the nearest value that would do. Nothing here touches memory, files or descriptors.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from enum import Enum, StrEnum
from typing import Any, Final, Literal, TypeVar, get_args

from shmbus import limits
from shmbus.errors import Refused

__all__ = [
    "CODEC_NAMES",
    "Backing",
    "ChannelSettings",
    "Visibility",
    "check_bus_name",
    "check_channel_name",
    "check_group_name",
    "format_bytes",
    "parse_capacity",
]

End = Literal["producers", "closed"]
Producers = Literal["many", "one"]
OnConsumerDeath = Literal["redeliver", "drop"]

CODEC_NAMES: Final = ("msgpack", "raw", "pickle", "msgspec")
"""The codecs that a channel can be made with."""


class Backing(StrEnum):
    """What is under a region."""

    MEMFD = "memfd"
    """Memory without a name, passed by descriptor: the default. Nothing is left behind, whoever dies."""
    SHM = "shm"
    """POSIX shared memory, whose name is taken away again as soon as it is open."""
    FILE = "file"
    """Files in a folder of the user's choice, which stay."""
    ANONYMOUS = "anonymous"
    """Memory that only forked children of its maker can see."""


class Visibility(Enum):
    """Whether others see what is written to a mapping."""

    SHARED = "shared"
    """Every process that maps the same bytes sees each write (MAP_SHARED)."""
    PRIVATE = "private"
    """A page that is written to becomes this process's own copy (MAP_PRIVATE)."""


_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_CAPACITY_TEXT: Final = re.compile(r"\s*([0-9]{1,20})\s*([A-Za-z]*)\s*", re.ASCII)


def format_bytes(value_bytes: int) -> str:
    """The size in words, in the largest unit that leaves no remainder: ``67108864`` is ``"64 MiB"``."""
    for unit, size in sorted(_UNITS.items(), key=lambda item: -item[1]):
        if unit and value_bytes and value_bytes % size == 0:
            return f"{value_bytes // size} {unit}"
    return f"{value_bytes} B"


def parse_capacity(value: int | str) -> int:
    """The capacity of a channel in bytes, from a number or from words.

    Args:
        value: bytes as an int, or text with a unit: ``"64 MiB"``, ``"4 KiB"``, ``"1 GiB"``, ``"65536"``.
            Units are B, KiB, MiB, GiB and TiB.

    Raises:
        Refused: it is no capacity, or none that is possible: a capacity is a power of two and a multiple of
            the page, within the limits. The message names the nearest that are possible.

    Example:
        >>> parse_capacity("64 MiB")
        67108864
    """
    capacity_bytes = _count_bytes(value)
    smallest, largest = limits.MIN_CAPACITY_BYTES, limits.MAX_CAPACITY_BYTES
    below = 1 << max(capacity_bytes, 1).bit_length() - 1
    if below == capacity_bytes and smallest <= capacity_bytes <= largest:
        return capacity_bytes
    near = sorted({min(max(size, smallest), largest) for size in (below, 2 * below)})
    raise Refused(
        f"capacity={_shown(value)} is not possible: a capacity is a power of two from "
        f"{format_bytes(smallest)} (a page) to {format_bytes(largest)}; the nearest: "
        + " or ".join(f"{size} ({format_bytes(size)})" for size in near),
        setting="capacity",
    )


def _count_bytes(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        match = _CAPACITY_TEXT.fullmatch(value)
        if match is not None and match[2] in _UNITS:
            return int(match[1]) * _UNITS[match[2]]
        raise Refused(
            f"capacity={_shown(value)} is not a size: write a whole number and B, KiB, MiB, GiB or TiB, "
            'such as "64 MiB"',
            setting="capacity",
        )
    raise Refused(
        f'capacity={_shown(value)} is not a size: give an int of bytes or text such as "64 MiB"',
        setting="capacity",
    )


def check_channel_name(name: object) -> str:
    """The name of a channel, if it can be one.

    Raises:
        Refused: it is empty, longer than ``limits.CHANNEL_NAME_BYTES``, begins with a dot, or holds a slash
            or a character that cannot be printed; or it is no str.
    """
    return _check_name("channel", name, limits.CHANNEL_NAME_BYTES)


def check_group_name(name: object) -> str:
    """The name of a group, if it can be one.

    Raises:
        Refused: as for :func:`check_channel_name`, with ``limits.GROUP_NAME_BYTES``.
    """
    return _check_name("group", name, limits.GROUP_NAME_BYTES)


def check_bus_name(name: object) -> str:
    """The name of a bus, if it can be one.

    Raises:
        Refused: as for :func:`check_channel_name`, with ``limits.BUS_NAME_BYTES``.
    """
    return _check_name("bus", name, limits.BUS_NAME_BYTES)


def _check_name(kind: str, name: object, limit_bytes: int) -> str:
    if not isinstance(name, str):
        raise Refused(f"the name of a {kind} is a str, and {_shown(name)} is a {type(name).__name__}")
    if not name:
        raise Refused(f"the name of a {kind} cannot be empty")
    # Names become parts of file names, of error messages and of tables in a terminal.
    unprintable = next((char for char in name if not char.isprintable()), None)
    if unprintable is not None:
        raise Refused(
            f"the name of a {kind} cannot hold {unprintable!a}: {_shown(name)}; use printable characters"
        )
    if "/" in name:
        raise Refused(f'the name of a {kind} cannot hold "/": {_shown(name)}; use "." or "-" instead')
    if name.startswith("."):
        raise Refused(f"the name of a {kind} cannot begin with a dot: {_shown(name)}")
    size = len(name.encode())
    if size > limit_bytes:
        raise Refused(
            f"the name of a {kind} is at most {limit_bytes} bytes of UTF-8, and {_shown(name)} has {size}"
        )
    return str(name)


def _shown(value: object) -> str:
    """The value for an error message: short, printable, and never an error itself."""
    try:
        text = repr(value)
    except Exception:  # an int of more digits than Python prints, or somebody's own
        return f"<{type(value).__name__}>"
    if not text.isprintable():
        text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """The settings of a channel: every participant opens it with the same.

    Args:
        capacity_bytes: room for records, headers included: a power of two and a multiple of the page. Text
            such as ``"64 MiB"`` is taken too, and stored as a number.
        groups: groups that exist from the start, and so get every record. No two alike.
        hold: whether records sent before there is any group wait for the first (True) or are discarded
            (False).
        end: the channel ends when every producer has gone ("producers") or only when it is closed ("closed").
        producers: "many", or "one" for a channel that never has two producers at once.
        on_consumer_death: what becomes of a record that a dead consumer held: "redeliver" it to another
            member of the group, or "drop" it.
        backing: what is under the two regions; text such as ``"shm"`` is taken too.
        directory: the folder of the files, with ``backing="file"`` and only then. Stored as an absolute path.
        visibility: shared, or private for the comparison mode; text is taken too.
        codec: one of ``CODEC_NAMES``.

    Raises:
        Refused: a value is not possible; ``setting`` is the keyword at fault.
    """

    capacity_bytes: int = limits.DEFAULT_CAPACITY_BYTES
    groups: tuple[str, ...] = ()
    hold: bool = True
    end: End = "producers"
    producers: Producers = "many"
    on_consumer_death: OnConsumerDeath = "redeliver"
    backing: Backing = Backing.MEMFD
    directory: str | None = None
    visibility: Visibility = Visibility.SHARED
    codec: str = "msgpack"

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "capacity_bytes": parse_capacity(self.capacity_bytes),
            "groups": _check_groups(self.groups),
            "hold": _check_bool("hold", self.hold),
            "end": _check_choice("end", self.end, get_args(End)),
            "producers": _check_choice("producers", self.producers, get_args(Producers)),
            "on_consumer_death": _check_choice(
                "on_consumer_death", self.on_consumer_death, get_args(OnConsumerDeath)
            ),
            "backing": _check_member("backing", self.backing, Backing),
            "visibility": _check_member("visibility", self.visibility, Visibility),
            "codec": _check_choice("codec", self.codec, CODEC_NAMES),
        }
        checked["directory"] = _check_directory(self.directory, checked["backing"])
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def to_wire(self) -> dict[str, object]:
        """The settings as plain numbers, text and lists, for the control protocol."""
        wire: dict[str, object] = {field.name: getattr(self, field.name) for field in fields(self)}
        wire.update(groups=list(self.groups), backing=self.backing.value, visibility=self.visibility.value)
        return wire

    @classmethod
    def from_wire(cls, wire: object) -> ChannelSettings:
        """The settings that another process sent; what it left out has its default.

        Raises:
            Refused: it is no dictionary of settings, knows a setting that this version does not, or holds a
                value that is not possible.
        """
        if not isinstance(wire, dict):
            raise Refused(f"settings arrive as a dictionary, and this is a {type(wire).__name__}")
        known = {field.name for field in fields(cls)}
        for key in wire:
            if key not in known:
                raise Refused(
                    f"unknown setting {_shown(key)}: the other process has another version of shmbus; "
                    "use the same in both",
                    setting=key if isinstance(key, str) else None,
                )
        arrived: dict[str, Any] = dict(wire)
        if not isinstance(arrived.get("capacity_bytes", 0), int):
            raise Refused("capacity_bytes arrives as a number of bytes", setting="capacity")
        directory = arrived.get("directory")
        # A relative path would mean another folder here than it meant to its sender.
        if directory is not None and not (isinstance(directory, str) and os.path.isabs(directory)):
            raise Refused(f"directory={_shown(directory)} is not an absolute path", setting="directory")
        return cls(**arrived)

    def differences(self, other: ChannelSettings) -> list[str]:
        """The names of the fields in which two settings differ, in the order of the fields."""
        return [
            field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)
        ]

    def describe_differences(self, other: ChannelSettings) -> str:
        """What differs, for an error message: ``capacity is 64 MiB, not 4 KiB``, the other's value last.

        Names are the keywords of ``bus.channel``. Empty when nothing differs.
        """
        return "; ".join(
            f"{_keyword(name)} is {_in_words(getattr(self, name))}, not {_in_words(getattr(other, name))}"
            for name in self.differences(other)
        )


def _keyword(field_name: str) -> str:
    return field_name.removesuffix("_bytes")


def _in_words(value: object) -> str:
    if isinstance(value, Enum):
        return repr(value.value)
    if isinstance(value, int) and not isinstance(value, bool):
        return format_bytes(value)
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _check_groups(groups: object) -> tuple[str, ...]:
    if not isinstance(groups, (tuple, list)):
        raise Refused(
            f'groups={_shown(groups)} is not a list of names: write groups=["a", "b"]', setting="groups"
        )
    if len(groups) > limits.MAX_GROUPS:
        raise Refused(
            f"a channel has at most {limits.MAX_GROUPS} groups (MAX_GROUPS), and {len(groups)} are named",
            setting="groups",
        )
    seen: list[str] = []
    for group in groups:
        try:
            name = check_group_name(group)
        except Refused as error:
            raise Refused(f"groups: {error}", setting="groups") from None
        if name in seen:
            raise Refused(f"groups names {name!r} twice; name each group once", setting="groups")
        seen.append(name)
    return tuple(seen)


def _check_bool(setting: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise Refused(
            f"{setting}={_shown(value)} is not possible; the choices: True or False", setting=setting
        )
    return value


def _check_choice(setting: str, value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise Refused(
            f"{setting}={_shown(value)} is not possible; the choices: {' or '.join(map(repr, choices))}",
            setting=setting,
        )
    return str(value)


_Member = TypeVar("_Member", bound=Enum)


def _check_member(setting: str, value: object, kind: type[_Member]) -> _Member:
    if isinstance(value, kind):
        return value
    return kind(_check_choice(setting, value, tuple(member.value for member in kind)))


def _check_directory(directory: object, backing: object) -> str | None:
    if backing is not Backing.FILE:
        if directory is not None:
            raise Refused(
                f'directory={_shown(directory)} is for backing="file" only; leave it out or add that',
                setting="directory",
            )
        return None
    if directory is None:
        raise Refused(
            'backing="file" needs a folder for its files: add directory="/path/to/folder"',
            setting="directory",
        )
    try:
        path = os.fspath(directory)  # type: ignore[call-overload]
    except TypeError:
        path = None
    if not isinstance(path, str) or not path or "\0" in path:
        raise Refused(f"directory={_shown(directory)} is not the path of a folder", setting="directory")
    path = os.path.abspath(path)
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise Refused(f"directory={_shown(path)} is not the path of a folder", setting="directory") from None
    if size > limits.DIRECTORY_PATH_BYTES:
        raise Refused(
            f"directory has {size} bytes; the limit is {limits.DIRECTORY_PATH_BYTES} (DIRECTORY_PATH_BYTES)",
            setting="directory",
        )
    return path
