"""What the demo has to say: tables on a terminal, the same as plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TextIO

import click

from shmbus.cli.terminal import is_terminal
from shmbus.settings import format_bytes

if TYPE_CHECKING:
    from shmbus.lab.wordcount import Plan, WordCount

__all__ = ["heading", "show"]

_STARTED: Final = {
    "fork": "started by fork",
    "spawn": "started by spawn",
    "forkserver": "started by forkserver",
    "broker": "forked by the broker, since anonymous memory can only be inherited",
}
_DIFFERENCES: Final = 5


def heading(plan: Plan) -> Iterator[str]:
    """Lines to begin with: what is about to be done."""
    yield (
        f"{_count(len(plan.files), 'file')} of {_megabytes(plan.size_bytes)} below {plan.folder}, "
        f"through a channel of {format_bytes(plan.capacity_bytes)} ({plan.backing.value})"
    )
    yield (
        f"{_count(plan.producers, 'producer')} and {_count(plan.consumers, 'consumer')}, "
        f"{_STARTED[plan.started_by]}"
    )


def show(result: WordCount, stream: TextIO | None) -> None:
    """Print the whole report."""
    if is_terminal(stream):
        _show_tables(result)
        return
    for label, text in _facts(result):
        click.echo(f"{label:<13}{text}")
    width = max(len(worker) for worker, *_ in _shares(result))
    for worker, *cells in _shares(result):
        click.echo(f"{worker:<{width}}" + "".join(f"  {cell:>18}" for cell in cells))
    click.echo("the top ten:")
    for word, count in result.top():
        click.echo(f"{count:>10,}  {word}")
    for line in _verdict(result):
        click.echo(line)


def _facts(result: WordCount) -> Iterator[tuple[str, str]]:
    data = result.to_json()
    size, records = result.size_bytes, result.records
    yield "files", f"{data['files']:,}"
    yield "bytes", f"{size:,}"
    yield "records", f"{records:,}"
    yield (
        "identifiers",
        f"{data['identifiers']:,}, {data['distinct']:,} of them different ({data['pattern']})",
    )
    yield (
        "seconds",
        f"{result.seconds:.2f} from the broker's start to its end, "
        f"{result.flow_seconds:.2f} of them from the first file to the last count",
    )
    rates = [_rate(size, records, seconds) for seconds in (result.seconds, result.flow_seconds)]
    yield "rate", f"{rates[0]} over all of it, {rates[1]} from the first file to the last count"
    yield "one process", f"{result.one_process_seconds:.2f} seconds for the same files"
    yield "lost", f"{result.lost:,}"
    yield "duplicated", f"{result.duplicated:,}"


def _shares(result: WordCount) -> Iterator[tuple[str, str, str, str]]:
    """Worker, its part of the bytes, records, bytes."""
    for share in result.shares:
        part = share.size_bytes / result.size_bytes if result.size_bytes else 0.0
        yield share.worker, f"{part:.1%}", _count(share.records, "record"), f"{share.size_bytes:,} bytes"


def _verdict(result: WordCount) -> Iterator[str]:
    if result.counts_equal:
        yield "counts equal to those of one process"
        return
    differences = result.differences()
    yield f"COUNTS DIFFER from those of one process, in {_count(len(differences), 'identifier')}:"
    for word, got, expected in differences[:_DIFFERENCES]:
        yield f"  {word}: {got:,} through the bus, {expected:,} in one process"
    if len(differences) > _DIFFERENCES:
        yield f"  and {len(differences) - _DIFFERENCES:,} more"


def _show_tables(result: WordCount) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    for label, text in _facts(result):
        facts.add_row(label, Text(text))
    shares = Table("worker", title="shares", title_justify="left")
    for column in ("part", "records", "bytes"):
        shares.add_column(column, justify="right")
    for worker, part, records, size in _shares(result):
        shares.add_row(worker, part, records.partition(" ")[0], size.partition(" ")[0])
    top = Table("identifier", title="the top ten", title_justify="left")
    top.add_column("count", justify="right")
    for word, count in result.top():
        top.add_row(Text(word), f"{count:,}")
    for table in (facts, shares, top):
        console.print(table)
    for line in _verdict(result):
        console.print(Text(line, style="bold green" if result.correct else "bold red"))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 100_000 else _count(size_bytes, "byte")


def _rate(size_bytes: int, records: int, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return f"{size_bytes / 1e6 / seconds:,.1f} MB/s and {records / seconds:,.0f} records/s"
