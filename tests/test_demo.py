"""The demo: what it counts, what it measures, and that bus and one process agree in every arrangement."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_help import environment, patched, shmbus, write_corpus
from hypothesis import given
from hypothesis import strategies as st

import shmbus as package
from shmbus.cli import main
from shmbus.lab import wordcount
from shmbus.lab.wordcount import plan, run
from shmbus.lab.wordcount_work import Collector, count_identifiers, count_piece, find_files, read_file

METHODS = ["fork", "spawn", "forkserver"]
BACKINGS = ["memfd", "shm", "file", "anonymous"]
FILES = 5
PAGE = "4 KiB"
"""A ring that the corpus goes round several times, and most of its files do not fit into whole."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def expected_of(folder: Path) -> Counter[bytes]:
    return sum((count_identifiers(read_file(path)) for path in find_files(str(folder))), Counter())


# --- counting ---


def test_identifiers_are_runs_of_word_bytes_that_begin_with_no_digit() -> None:
    found = count_identifiers(b"def _a1(b): return 0x1F + a1 + 9lives + gr\xc3\xb6 # def")
    assert found == Counter({b"def": 2, b"_a1": 1, b"b": 1, b"return": 1, b"a1": 1, b"gr": 1})


def test_the_files_are_the_regular_ones_outside_of_installed_packages(corpus: Path) -> None:
    found = [os.path.relpath(path, corpus) for path in find_files(str(corpus))]
    assert found == ["edges.py", "empty.py", "long.py", "nested/noise.py", "nested/plain.py"]


def test_the_standard_library_is_found_without_installed_packages() -> None:
    found = find_files(wordcount.standard_library())
    assert any(path.endswith("/json/decoder.py") for path in found)
    assert not [path for path in found if "site-packages" in path or "dist-packages" in path]


def report(number: int, piece: int, data: bytes, worker: str = "c") -> list[Any]:
    found = count_piece(data)
    words, times = b" ".join(found.counts), list(found.counts.values())
    return ["counted", worker, number, piece, len(data), found.head, found.tail, words, times]


@given(st.lists(st.text("ab_1 .é", max_size=6).map(str.encode), min_size=1, max_size=8), st.randoms())
def test_counts_do_not_depend_on_where_a_file_is_cut_nor_on_the_order_of_reports(
    pieces: list[bytes], random: Any
) -> None:
    collector = Collector(1)
    collector.add(["sent", "p", 0, len(pieces), 0, 0])
    numbers = list(range(len(pieces)))
    random.shuffle(numbers)
    for piece in numbers:
        collector.add(report(0, piece, pieces[piece]))
    assert collector.total() == count_identifiers(b"".join(pieces))
    assert (collector.records, collector.lost, collector.duplicated) == (len(pieces), 0, 0)


def test_a_record_that_nobody_reports_is_lost_and_a_second_report_is_a_duplicate_and_not_added() -> None:
    collector = Collector(3)
    collector.add(["sent", "p", 0, 3, 12, 0])
    collector.add(["sent", "p", 1, 1, 4, 0])
    collector.add(report(0, 0, b"one "))
    collector.add(report(0, 2, b"two "))
    collector.add(report(1, 0, b"six ", "d"))
    collector.add(report(1, 0, b"six ", "c"))
    assert collector.lost == 2  # piece 1 of file 0, and file 2, of which nobody has heard
    assert collector.duplicated == 1
    assert collector.records == 3
    assert collector.total() == Counter([b"one", b"two", b"six"])
    assert {name: (one.records, one.size_bytes) for name, one in collector.shares.items()} == {
        "p": (4, 16),
        "c": (3, 12),
        "d": (1, 4),
    }


# --- every arrangement ---


def check(result: wordcount.WordCount, corpus: Path) -> None:
    assert (result.lost, result.duplicated, result.failure) == (0, 0, None)
    assert result.counts == result.expected == expected_of(corpus)
    assert result.counts[b"x" * 5000] == 1
    assert b"not_counted" not in result.counts
    assert result.correct
    consumers = [share for share in result.shares if share.role == "consumer"]
    producers = [share for share in result.shares if share.role == "producer"]
    assert (len(consumers), len(producers)) == (result.plan.consumers, result.plan.producers)
    for workers in (consumers, producers):
        assert sum(share.records for share in workers) == result.records
        assert sum(share.size_bytes for share in workers) == result.size_bytes == result.plan.size_bytes


@pytest.mark.parametrize(
    ("method", "backing"),
    [
        *itertools.product(["fork"], BACKINGS),
        ("spawn", "memfd"),
        ("spawn", "anonymous"),
        ("forkserver", "memfd"),
        ("forkserver", "file"),
    ],
)
def test_counts_are_equal_under_each_start_method_and_backing(
    corpus: Path, method: str, backing: str
) -> None:
    result = run(plan(corpus, consumers=2, producers=1, start_method=method, backing=backing, capacity=PAGE))
    check(result, corpus)
    assert result.records > FILES
    assert result.plan.started_by == ("broker" if backing == "anonymous" else method)


@pytest.mark.parametrize("producers", [1, 3])
@pytest.mark.parametrize("consumers", [1, 2, 8])
def test_counts_are_equal_with_any_number_of_workers(corpus: Path, consumers: int, producers: int) -> None:
    check(
        run(plan(corpus, consumers=consumers, producers=producers, start_method="fork", capacity=PAGE)),
        corpus,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "backing", "consumers", "producers"),
    list(itertools.product(METHODS, BACKINGS, [1, 2, 8], [1, 3])),
)
def test_the_standard_library_in_every_arrangement(
    method: str, backing: str, consumers: int, producers: int
) -> None:
    options = ["--start-method", method, "--backing", backing]
    done = shmbus("demo", "--json", *options, "--consumers", consumers, "--producers", producers)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert (data["counts_equal"], data["lost"], data["duplicated"]) == (True, 0, 0)
    assert data["files"] == data["records"] > 1000


def test_a_file_that_fits_is_one_record(corpus: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = run(plan(corpus), lambda *progress: seen.append(progress))
    check(result, corpus)
    assert result.records == FILES
    for stage in ("bus", "one process"):
        assert [one[1:] for one in seen if one[0] == stage][-1] == (result.size_bytes, FILES)


def test_a_consumer_that_is_killed_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    killing = f"""
        count = work.count_piece
        def count_piece(data):
            if data.startswith(b"def"):
                try:
                    os.mkdir({str(tmp_path / "killed")!r})
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            return count(data)
        work.count_piece = count_piece
        """
    words = [*patched(tmp_path, killing), "demo", "--json", "--folder", str(corpus), "--capacity", PAGE]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    data = json.loads(done.stdout)
    assert (data["counts_equal"], data["lost"], data["duplicated"]) == (True, 0, 0)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "was killed by SIGKILL" in line


def test_a_record_whose_consumer_is_killed_after_its_report_shows_as_duplicated(
    corpus: Path, tmp_path: Path
) -> None:
    killing = """
        class Killing:  # stands in for the consumer's producer of reports
            def __init__(self, reports, rx):
                self.reports, self.rx = reports, rx
            def __enter__(self):
                self.reports.__enter__()
                return self
            def __exit__(self, *error):
                self.reports.__exit__(*error)
            def send(self, report):
                self.reports.send(report)
                if b"return" in report[-2].split() and not self.rx.redelivered:
                    os.kill(os.getpid(), signal.SIGKILL)
        count_records = wordcount.count_records
        wordcount.count_records = lambda rx, reports: count_records(rx, Killing(reports, rx))
        """
    words = [*patched(tmp_path, killing), "demo", "--json", "--folder", str(corpus), "--start-method", "fork"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    data = json.loads(done.stdout)
    assert (data["counts_equal"], data["lost"], data["duplicated"]) == (True, 0, 1)
    assert done.returncode == 1


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(package.Refused, match=r"no \.py file below"):
        plan(tmp_path)


# --- the command ---


def test_the_command_prints_one_json_object_and_nothing_else(corpus: Path) -> None:
    done = shmbus("demo", "--json", "--folder", corpus, "--consumers", 2, "--producers", 3, FORCE_COLOR="1")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert len(done.stdout.splitlines()) == 1
    expected = expected_of(corpus)
    size = sum(len(read_file(path)) for path in find_files(str(corpus)))
    assert (
        data
        | {
            "files": FILES,
            "bytes": size,
            "records": FILES,
            "lost": 0,
            "duplicated": 0,
            "counts_equal": True,
            "identifiers": expected.total(),
            "consumers": 2,
            "producers": 3,
            "backing": "memfd",
        }
        == data
    )
    assert data["seconds"] > data["flow_seconds"] > 0
    assert len(data["shares"]) == 5
    assert data["top"][0] == ["alpha", 401]


def test_the_command_prints_plain_lines_where_there_is_no_terminal(corpus: Path) -> None:
    done = shmbus("demo", "--folder", corpus, "--start-method", "fork", FORCE_COLOR="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{FILES} files of ")
    assert "counting through the bus: 100 %, 5 files" in lines
    assert "counting in one process: 100 %, 5 files" in lines
    labels = {line.split("  ")[0] for line in lines}
    assert {"files", "bytes", "records", "seconds", "rate", "one process", "lost", "duplicated"} <= labels
    assert {"consumer-1", "consumer-2", "producer-1"} <= labels
    assert lines[-1] == "counts equal to those of one process"


def test_files_without_a_byte_are_records_too(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).touch()
    done = shmbus("demo", "--folder", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "records      2" in done.stdout.splitlines()


@pytest.fixture
def miscounting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    count = wordcount.count_in_one_process

    def miscount(*given: Any) -> Counter[bytes]:
        return count(*given) + Counter({b"alpha": 1, b"never_seen": 2})

    monkeypatch.setattr(wordcount, "count_in_one_process", miscount)
    return


@pytest.mark.usefixtures("miscounting")
def test_the_exit_status_is_1_if_the_counts_differ(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--folder", str(corpus), "--start-method", "fork"]) == 1
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines()[-3:] == [
        "COUNTS DIFFER from those of one process, in 2 identifiers:",
        "  alpha: 401 through the bus, 402 in one process",
        "  never_seen: 0 through the bus, 2 in one process",
    ]


@pytest.mark.usefixtures("miscounting")
def test_json_says_that_the_counts_differ_and_the_exit_status_is_1_too(
    corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--json", "--folder", str(corpus), "--start-method", "fork"]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["counts_equal"] is False
    assert err == ""


@pytest.mark.parametrize(("lost", "duplicated"), [(1, 0), (0, 1)])
def test_a_run_with_equal_counts_is_not_correct_if_a_record_was_lost_or_counted_twice(
    corpus: Path, lost: int, duplicated: int
) -> None:
    result = wordcount.WordCount(
        plan=plan(corpus),
        size_bytes=0,
        records=0,
        lost=lost,
        duplicated=duplicated,
        counts=Counter(),
        expected=Counter(),
        shares=[],
        seconds=1.0,
        flow_seconds=1.0,
        one_process_seconds=1.0,
    )
    assert result.counts_equal
    assert not result.correct
