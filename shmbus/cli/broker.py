"""``shmbus broker``: serve a bus in the foreground, as a service does."""

from __future__ import annotations

import os

import click

from shmbus.cli.options import to_mode

__all__ = ["command"]


@click.command()
@click.option("--bus", "bus_name", metavar="NAME", default="default", show_default=True, help="The bus.")
@click.option(
    "--socket",
    "path",
    type=click.Path(),
    help="Where its socket goes; default: where shmbus.connect(NAME) of this user looks for it.",
)
@click.option(
    "--mode",
    metavar="MODE",
    callback=to_mode,
    default="0600",
    show_default=True,
    help="Who may connect to the socket.",
)
def command(bus_name: str, path: str | None, mode: int) -> int:
    """Serve a bus until SIGTERM or Ctrl-C.

    Prints a line when programs can connect. A bus has one broker: a second one is refused, and told which
    process holds the bus. With a MODE that has bits for the group or for others, whoever it lets connect is
    served.
    """
    from shmbus.broker import serve

    def say_ready(where: str) -> None:
        click.echo(f"bus {bus_name!r} is served at {where} by process {os.getpid()}")

    serve(path, bus_name=bus_name, mode=mode, on_ready=say_ready)
    return 0
