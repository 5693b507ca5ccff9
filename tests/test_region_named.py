"""Named regions: their names, who takes them away, and what a killed creator means."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from region_help import exit_code_in_a_fork, no_descriptor_is_lost

from shmbus.errors import Refused
from shmbus.limits import PAGE_BYTES as PAGE
from shmbus.region import Prot, Region


def test_a_named_region_is_found_by_its_name_and_gone_with_its_creator(unique: str) -> None:
    name = f"/{unique}"
    with Region.named(name, PAGE + 1, create=True) as creator:
        creator[0:5] = b"hello"
        with Region.named(name) as other:
            assert (other[0:5], other.length) == (b"hello", PAGE + 1)
        assert os.path.exists(f"/dev/shm{name}")
    assert not os.path.exists(f"/dev/shm{name}")
    with pytest.raises(Refused, match="create=True"):
        Region.named(name)


def test_unlinking_twice_is_harmless_and_who_has_it_mapped_goes_on(unique: str) -> None:
    with Region.named(f"/{unique}", PAGE, create=True) as creator, Region.named(f"/{unique}") as other:
        other.unlink()
        creator.unlink()
        creator[0] = 1
        assert other[0] == 1
    with Region.anonymous(1) as region, pytest.raises(Refused, match="no name"):
        region.unlink()


def test_a_creator_does_not_take_away_a_name_that_has_come_to_mean_other_memory(unique: str) -> None:
    first = Region.named(f"/{unique}", PAGE, create=True)
    first.unlink()
    with Region.named(f"/{unique}", PAGE, create=True):
        first.close()
        Region.named(f"/{unique}").close()


def test_a_name_that_is_taken_is_refused(unique: str) -> None:
    with Region.named(f"/{unique}", PAGE, create=True), no_descriptor_is_lost():  # noqa: SIM117
        with pytest.raises(Refused, match="exists already"):
            Region.named(f"/{unique}", PAGE, create=True)


@pytest.mark.parametrize("name", ["", "/", "x", "/a/b", "/.", "/..", "/a\0b", "/" + "a" * 255])
def test_a_name_that_is_not_possible_is_refused(name: str) -> None:
    for create in (True, False):
        with pytest.raises(Refused, match="name"):
            Region.named(name, 1, create=create)


def test_a_child_forked_from_the_creator_does_not_take_the_name_away(unique: str) -> None:
    with Region.named(f"/{unique}", PAGE, create=True) as region:
        assert exit_code_in_a_fork(region.close) == 0
        Region.named(f"/{unique}").close()


def test_a_creator_that_ends_without_closing_takes_the_name_away(unique: str) -> None:
    code = f"from shmbus.region import Region; r = Region.named('/{unique}', 1, create=True); print(r[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert not os.path.exists(f"/dev/shm/{unique}")


def test_a_named_region_opened_for_reading_cannot_be_made_writable(unique: str) -> None:
    with Region.named(f"/{unique}", PAGE, create=True):
        reader = Region.named(f"/{unique}", prot=Prot.READ)
        with reader, pytest.raises(Refused, match="reading only"):
            reader.protect(Prot.READ | Prot.WRITE)
