"""``shmbus demo``: the main job of a bus, end to end, on real input."""

from __future__ import annotations

import json
import os
import sys

import click

from shmbus.cli.options import to_capacity
from shmbus.settings import Backing

__all__ = ["command"]


def _default_consumers() -> int:
    return min(8, max(2, len(os.sched_getaffinity(0))))


@click.command()
@click.option(
    "--consumers",
    type=click.IntRange(min=1),
    default=_default_consumers,
    show_default="one per CPU, from 2 to 8",
    help="Processes that count.",
)
@click.option(
    "--producers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that read and send.",
)
@click.option(
    "--start-method",
    type=click.Choice(["fork", "spawn", "forkserver"]),
    help="How they are started; default: as Python does here.",
)
@click.option(
    "--backing",
    type=click.Choice([one.value for one in Backing]),
    default=Backing.MEMFD.value,
    show_default=True,
    help="What is under the channel of files; for anonymous the broker forks the workers.",
)
@click.option(
    "--capacity",
    metavar="SIZE",
    callback=to_capacity,
    default="64 MiB",
    show_default=True,
    help="Of the channel of files.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False),
    help="Whose .py files are counted; default: the standard library of this Python.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def command(
    consumers: int,
    producers: int,
    start_method: str | None,
    backing: str,
    capacity: int,
    folder: str | None,
    as_json: bool,
) -> int:
    """Count the identifiers of Python's standard library through shared memory.

    Producers send the bytes of every .py file through one channel to consumers, who count and report through
    another. The same is counted in one process, and compared: the exit status is 1 if the counts differ, or a
    record was lost or counted twice.
    """
    from shmbus.cli import demo_progress, demo_report
    from shmbus.lab import wordcount

    plan = wordcount.plan(
        folder,
        consumers=consumers,
        producers=producers,
        start_method=start_method,
        backing=backing,
        capacity=capacity,
    )
    if as_json:
        with demo_progress.shown(plan, sys.stderr, plain=False) as on_progress:
            result = wordcount.run(plan, on_progress)
        click.echo(json.dumps(result.to_json()))
    else:
        for line in demo_report.heading(plan):
            click.echo(line)
        with demo_progress.shown(plan, sys.stdout, plain=True) as on_progress:
            result = wordcount.run(plan, on_progress)
        demo_report.show(result, sys.stdout)
    if result.failure is not None:
        raise result.failure
    return 0 if result.correct else 1
