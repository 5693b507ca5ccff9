"""Regions: the demonstrations, types, what can be mapped, the buffer, protection, closing."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import platform
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from region_help import exit_code_in_a_fork, is_mapped, no_descriptor_is_lost

from shmbus import _core
from shmbus.errors import Closed, NoSpace, Refused
from shmbus.limits import PAGE_BYTES as PAGE
from shmbus.region import Advice, Prot, Region
from shmbus.settings import Backing, Visibility

READ_WRITE = Prot.READ | Prot.WRITE
LENGTHS = [1, 7, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE + 5]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three pages: a, b and c."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    return file


# ---- the demonstrations of the article, and the tests of mmap-go ------------------------------------------


def test_what_is_written_to_a_shared_region_is_in_the_file(path: Path) -> None:
    with Region.map(path) as region:
        region[0] = ord("X")
        region.flush()
    assert path.read_bytes()[:2] == b"Xa"


def test_what_is_written_to_a_private_region_never_reaches_the_file(path: Path) -> None:
    before = path.read_bytes()
    with Region.map(path, visibility=Visibility.PRIVATE) as region:
        region[0:3] = b"XYZ"
        region.flush()
        assert region[0:4] == b"XYZa"
    assert path.read_bytes() == before


def test_a_private_region_may_be_written_to_though_its_file_is_open_for_reading_only(path: Path) -> None:
    with path.open("rb") as file, Region.map(file, visibility=Visibility.PRIVATE) as region:
        region[0] = 0
        assert region[0] == 0


def test_an_offset_maps_the_file_from_that_page_on(path: Path) -> None:
    with Region.map(path, 2, offset=PAGE) as region:
        assert (region[:], region.length, region.offset) == (b"bb", 2, PAGE)


@pytest.mark.parametrize(
    ("offset", "near"), [(1, (0, PAGE)), (PAGE - 1, (0, PAGE)), (PAGE + 1, (PAGE, 2 * PAGE))]
)
def test_an_unaligned_offset_is_refused_naming_the_nearest(
    path: Path, offset: int, near: tuple[int, int]
) -> None:
    with no_descriptor_is_lost(), pytest.raises(Refused, match=f"nearest: {near[0]} or {near[1]}$"):
        Region.map(path, 1, offset=offset)


def test_a_protection_that_conflicts_with_the_open_mode_is_refused(path: Path) -> None:
    with path.open("rb") as file, no_descriptor_is_lost():
        with pytest.raises(Refused, match="open for reading only"):
            Region.map(file)
        with Region.map(file, prot=Prot.READ) as region:
            with pytest.raises(Refused, match="open for reading only"):
                region.protect(READ_WRITE)
            assert region.prot is Prot.READ
    with path.open("ab") as file, pytest.raises(Refused, match="open for writing only"):
        Region.map(file, prot=Prot.READ)


def test_an_anonymous_region_is_zeros_and_belongs_to_no_file() -> None:
    with Region.anonymous(PAGE + 1) as region:
        assert region[:] == bytes(PAGE + 1)
        assert region.backing is Backing.ANONYMOUS
        with pytest.raises(Refused, match="no descriptor"):
            region.fileno()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the function is given in x86-64 machine code")
def test_code_in_an_executable_region_can_be_called() -> None:
    with Region.anonymous(PAGE, visibility=Visibility.PRIVATE) as region:
        region[0:4] = bytes.fromhex("8d4701c3")  # lea eax, [rdi + 1]; ret
        region.protect(Prot.READ | Prot.EXEC)
        increment = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(region.address)
        assert increment(10) == 11


# ---- types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prot", [3, 4, Visibility.PRIVATE, Advice.NORMAL, None, "READ"])
def test_nothing_but_a_prot_is_a_protection(path: Path, prot: object) -> None:
    with no_descriptor_is_lost(), pytest.raises(TypeError, match="must be a member of Prot"):
        Region.map(path, prot=prot)  # type: ignore[arg-type]
    with Region.anonymous(1) as region, pytest.raises(TypeError, match="must be a member of Prot"):
        region.protect(prot)  # type: ignore[arg-type]


@pytest.mark.parametrize("visibility", [1, 2, "private", Prot.EXEC, None])
def test_nothing_but_a_visibility_is_a_visibility(path: Path, visibility: object) -> None:
    for make in (lambda **kw: Region.map(path, **kw), lambda **kw: Region.anonymous(1, **kw)):
        with pytest.raises(TypeError, match="must be a member of Visibility"):
            make(visibility=visibility)


def test_a_protection_does_not_combine_with_a_number_or_a_visibility() -> None:
    for other in (4, Visibility.PRIVATE, Advice.NORMAL):
        with pytest.raises(TypeError):
            Prot.READ | other  # type: ignore[operator]


def test_nothing_but_an_advice_is_an_advice() -> None:
    with (
        Region.anonymous(1) as region,
        pytest.raises(TypeError, match="must be a member of Advice"),
    ):
        region.advise(4)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1.0, "1", True])
def test_a_length_is_an_int(length: object) -> None:
    with pytest.raises(TypeError, match="int of bytes"):
        Region.anonymous(length)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, -1, 1 << 62, 1 << 64])
def test_a_length_that_no_region_can_have_is_refused(length: int) -> None:
    for make in (
        Region.anonymous,
        lambda n: Region.memfd("x", n),
        lambda n: Region.named("/x", n, create=True),
    ):
        with pytest.raises(Refused, match="at least 1 byte"):
            make(length)


def test_a_region_is_made_by_its_class_methods_only_and_does_not_pickle() -> None:
    for kind in (Region, _core.Region):
        with pytest.raises(TypeError, match="class methods"):
            kind()
    with Region.anonymous(1) as region, pytest.raises(TypeError, match="pickle"):
        pickle.dumps(region)


# ---- what can be mapped -----------------------------------------------------------------------------------


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with no_descriptor_is_lost(), pytest.raises(Refused, match="is empty"):
        Region.map(tmp_path / "empty")


def test_a_proc_file_is_refused_with_the_advice_to_read_it() -> None:
    with pytest.raises(Refused, match="read it instead"):
        Region.map("/proc/self/status", prot=Prot.READ)


def test_a_pipe_is_refused_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with no_descriptor_is_lost(), pytest.raises(Refused, match="no regular file"):
        Region.map(tmp_path / "pipe", prot=Prot.READ)


@pytest.mark.parametrize(("offset", "length"), [(0, 3 * PAGE + 1), (PAGE, 2 * PAGE + 1), (2 * PAGE, 1 << 40)])
def test_a_region_past_the_end_of_its_file_is_refused(path: Path, offset: int, length: int) -> None:
    with pytest.raises(Refused, match="SIGBUS"):
        Region.map(path, length, offset=offset)


def test_an_offset_at_the_end_of_the_file_is_refused(path: Path) -> None:
    with pytest.raises(Refused, match="ends at"):
        Region.map(path, offset=3 * PAGE)


def test_a_missing_file_is_the_error_that_open_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Region.map(tmp_path / "missing")


def test_an_open_file_a_descriptor_and_a_path_are_the_same_to_map(path: Path) -> None:
    with path.open("r+b") as file:
        for named in (path, str(path), file, file.fileno()):
            with Region.map(named) as region:
                assert region[PAGE] == ord("b")
    for other in (True, None, b"path", 1.5):
        with pytest.raises(TypeError, match="a path or an open file"):
            Region.map(other)  # type: ignore[arg-type]


def test_what_python_still_buffers_is_mapped_too(tmp_path: Path) -> None:
    with (tmp_path / "buffered").open("w+b") as file:
        file.write(b"not yet flushed")
        with Region.map(file) as region:
            assert region[:] == b"not yet flushed"


def test_the_file_may_be_closed_as_soon_as_it_is_mapped(path: Path) -> None:
    with path.open("r+b") as file:
        region = Region.map(file)
    assert region[0] == ord("a")
    assert os.fstat(region.fileno()).st_size == 3 * PAGE
    region.close()


def test_a_zero_device_is_mapped_with_a_length() -> None:
    with pytest.raises(Refused, match="length="):
        Region.map("/dev/zero")
    with Region.map("/dev/zero", 5) as region:
        assert region[:] == bytes(5)


def test_a_region_that_does_not_fit_the_address_space_names_the_limit(path: Path) -> None:
    os.truncate(path, 1 << 40)

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        with pytest.raises(NoSpace, match=r"RLIMIT_AS \(4.0 GiB") as caught:
            Region.map(path)
        assert caught.value.needed_bytes == 1 << 40

    assert exit_code_in_a_fork(body) == 0


# ---- the buffer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_the_buffer_has_the_length_asked_for(length: int) -> None:
    for region in (Region.anonymous(length), Region.memfd("length", length)):
        with region, memoryview(region) as view:
            assert (len(view), len(region), region.length) == (length, length, length)
            assert (view.format, view.ndim, view.readonly) == ("B", 1, False)
            view[length - 1] = 255
            assert region[-1] == 255


def test_a_view_is_read_only_where_the_region_is() -> None:
    with Region.anonymous(1, prot=Prot.READ) as region:
        with memoryview(region) as view:
            assert view.readonly
        with pytest.raises(TypeError):
            region[0] = 1


@pytest.mark.parametrize("prot", [Prot.NONE, Prot.WRITE, Prot.EXEC])
def test_a_region_that_may_not_be_read_has_no_buffer(prot: Prot) -> None:
    with Region.anonymous(1, prot=prot) as region:
        with pytest.raises(BufferError):
            memoryview(region)
        region.protect(prot | Prot.READ)
        assert region[0] == 0


def test_a_region_is_not_closed_under_a_view_or_an_array() -> None:
    region = Region.memfd("viewed", PAGE)
    view = memoryview(region)[3:]
    array = np.frombuffer(region, dtype=np.uint8)
    for count in ("2 views", "1 view "):
        with pytest.raises(BufferError, match=count):
            region.close()
        assert not region.closed
        view.release()
    array[0] = 9
    assert region[0] == 9
    del array
    region.close()
    assert region.closed


def test_a_dropped_region_stays_mapped_for_its_last_view() -> None:
    view = memoryview(Region.memfd("dropped", PAGE))
    address = np.frombuffer(view, dtype=np.uint8).ctypes.data
    gc.collect()
    view[0] = 1
    assert is_mapped(address)
    view.release()
    assert not is_mapped(address)


def test_leaving_the_block_with_views_is_a_buffer_error_unless_something_else_went_wrong() -> None:
    with pytest.raises(BufferError), Region.anonymous(1) as region:
        view = memoryview(region)
    view.release()
    with contextlib.suppress(ZeroDivisionError), Region.anonymous(1) as region:
        view = memoryview(region)
        _ = 1 // 0
    view.release()
    region.close()


# ---- protect ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [Prot.NONE, Prot.READ, Prot.WRITE])
def test_no_right_is_taken_away_under_a_view(taken: Prot) -> None:
    with Region.anonymous(1) as region:
        with memoryview(region) as view:
            with pytest.raises(BufferError, match="take a right away"):
                region.protect(taken)
            view[0] = 1
        region.protect(taken)
        assert region.prot is taken


def test_a_right_may_be_granted_under_a_view() -> None:
    with Region.anonymous(1, prot=Prot.READ) as region, memoryview(region):
        region.protect(READ_WRITE)
        region[0] = 1


def test_a_touch_that_the_protection_forbids_ends_only_a_child() -> None:
    with Region.anonymous(PAGE, prot=Prot.NONE) as region:
        assert exit_code_in_a_fork(lambda: ctypes.string_at(region.address, 1)) < 0


# ---- close ------------------------------------------------------------------------------------------------


def test_closing_unmaps_exactly_once(path: Path) -> None:
    region = Region.map(path)
    address = region.address
    region.close()
    assert not is_mapped(address)
    # Lies, most likely, where the first one lay: a second munmap would take it away.
    again = Region.map(path)
    region.close()
    del region
    assert is_mapped(again.address)
    assert again[0] == ord("a")
    again.close()


def test_a_dropped_region_is_unmapped_and_its_descriptor_closed() -> None:
    with no_descriptor_is_lost():
        region = Region.memfd("dropped", PAGE)
        address = region.address
        del region
        gc.collect()
    assert not is_mapped(address)


def test_a_closed_region_says_so_to_every_call() -> None:
    region = Region.memfd("closed", PAGE)
    region.close()
    calls: list[Callable[[], object]] = [
        region.lock,
        region.unlock,
        region.flush,
        region.populate,
        region.resident,
        region.fileno,
        region.__enter__,
        lambda: region.protect(Prot.READ),
        lambda: region.advise(Advice.NORMAL),
        lambda: region.address,
        lambda: region[0],
        lambda: region.__setitem__(0, 1),
    ]
    for call in calls:
        with pytest.raises(Closed, match="memfd 'closed' is closed"):
            call()
    with pytest.raises(BufferError):
        memoryview(region)
    assert len(region) == 0
    assert "closed" in repr(region)
