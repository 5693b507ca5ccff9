"""How far the demo is: a bar on a terminal, a line for each quarter elsewhere.

The bar is drawn from the calls that tell of progress, and not from a thread of rich's own: workers that are
started by fork would inherit that thread's locks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

import click

from shmbus.cli.terminal import is_terminal

if TYPE_CHECKING:
    from shmbus.lab.wordcount import Plan
    from shmbus.lab.wordcount_work import OnProgress

__all__ = ["shown"]

_STAGES: Final = {"bus": "counting through the bus", "one process": "counting in one process"}
_DRAWINGS: Final = 100


@contextmanager
def shown(plan: Plan, stream: TextIO | None, *, plain: bool) -> Iterator[OnProgress | None]:
    """What to tell of progress in the block.

    Args:
        plan: of the work.
        stream: where it is shown.
        plain: whether there are to be lines where there is no terminal.
    """
    if is_terminal(stream):
        with _bar(plan, stream) as on_progress:
            yield on_progress
    else:
        yield _lines(plan) if plain else None


def _part(plan: Plan, size_bytes: int, files: int, of: int) -> int:
    """The progress in `of` parts of the whole."""
    if plan.size_bytes:
        return of * size_bytes // plan.size_bytes
    return of * files // len(plan.files)


def _lines(plan: Plan) -> OnProgress:
    said = dict.fromkeys(_STAGES, 0)

    def on_progress(stage: str, size_bytes: int, files: int) -> None:
        part = _part(plan, size_bytes, files, 4)
        if part > said[stage]:
            said[stage] = part
            click.echo(f"{_STAGES[stage]}: {25 * part} %, {files} files")

    return on_progress


@contextmanager
def _bar(plan: Plan, stream: TextIO | None) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[files]} files"),
    )
    console = Console(file=stream, highlight=False)
    bar = Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,  # workers that are forked meanwhile would inherit that too
        redirect_stderr=False,
    )
    with bar as progress:
        tasks = {
            stage: progress.add_task(text, total=plan.size_bytes, files=0, visible=stage == "bus")
            for stage, text in _STAGES.items()
        }
        drawn = dict.fromkeys(_STAGES, 0)
        progress.refresh()

        def on_progress(stage: str, size_bytes: int, files: int) -> None:
            part = _part(plan, size_bytes, files, _DRAWINGS)
            if part > drawn[stage]:
                drawn[stage] = part
                progress.update(tasks[stage], completed=size_bytes, files=files, visible=True, refresh=True)

        yield on_progress
