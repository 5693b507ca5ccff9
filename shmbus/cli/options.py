"""Values of options that several commands have. One that is not possible is wrong usage, and says why.

These are callbacks, not types: click's own type for types changed between the versions that we take.
"""

from __future__ import annotations

import click

from shmbus.errors import Refused

__all__ = ["to_capacity", "to_mode"]


def to_capacity(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """A capacity in bytes, from text such as ``64 MiB``."""
    from shmbus.settings import parse_capacity

    try:
        return parse_capacity(value)
    except Refused as error:
        raise click.BadParameter(str(error), context, parameter) from None


def to_mode(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """The mode of a file, from octal digits."""
    try:
        mode = int(value, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise click.BadParameter(
            f"{value!r} is no mode of a file: write octal digits, such as 0600", context, parameter
        )
    return mode
