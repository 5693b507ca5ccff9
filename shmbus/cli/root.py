"""The commands of ``shmbus``, and what stands before a command.

A command is a module of this package with a ``command`` in it, and a line in `COMMANDS`. It is imported when
it is asked for (or listed), and imports what it works with when it runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

__all__ = ["COMMANDS", "root"]

COMMANDS: Final = ("broker", "demo")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"shmbus.cli.{cmd_name}").command
        return command


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"shmbus {_version()}")
        context.exit()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("shmbus")
    except PackageNotFoundError:
        return "of a source tree that is not installed"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.option("--traceback", is_flag=True, help="Show where an error came from, not what it says alone.")
def root(**_options: Any) -> None:
    """Shared-memory channels between the Python processes of one machine."""
