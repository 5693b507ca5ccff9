"""The memory under regions: mirrors, forks, calls on it, threads; the native type."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from region_help import exit_code_in_a_fork, is_mapped, no_descriptor_is_lost

from shmbus import _core
from shmbus.errors import Closed, NoSpace, Refused
from shmbus.limits import PAGE_BYTES as PAGE
from shmbus.region import Advice, Prot, Region
from shmbus.settings import Visibility

READ_WRITE = Prot.READ | Prot.WRITE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three pages: a, b and c."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    return file


# ---- mirrored ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Region.anonymous, lambda n, **kw: Region.memfd("twice", n, **kw)])
def test_a_mirrored_region_shows_the_same_bytes_twice(make: Callable[..., Region]) -> None:
    with make(2 * PAGE, mirrored=True) as region:
        assert (len(region), region.length) == (4 * PAGE, 2 * PAGE)
        region[2 * PAGE - 3 : 2 * PAGE + 3] = b"abcdef"  # over the seam
        assert region[0:3] == b"def"
        assert region[-3:] == b"abc"
        region.populate()
        region.flush()
        region.advise(Advice.DONTNEED)
        assert region[0:3] == b"def"
        assert region.resident() == [True, True]


@pytest.mark.parametrize("make", [Region.anonymous, lambda n, **kw: Region.memfd("twice", n, **kw)])
def test_a_mirrored_private_region_has_two_views_of_its_own(make: Callable[..., Region]) -> None:
    with make(PAGE, mirrored=True, visibility=Visibility.PRIVATE) as region:
        region[0] = 1
        region[PAGE] = 2
        assert (region[0], region[PAGE]) == (1, 2)


def test_a_mirrored_file_starts_at_its_offset_in_both_views(path: Path) -> None:
    with Region.map(path, PAGE, offset=PAGE, mirrored=True) as region:
        assert region[:] == b"b" * 2 * PAGE


def test_a_mirrored_region_is_unmapped_whole() -> None:
    region = Region.memfd("twice", PAGE, mirrored=True)
    address = region.address
    assert is_mapped(address)
    assert is_mapped(address + PAGE)
    region.close()
    assert not is_mapped(address)
    assert not is_mapped(address + PAGE)


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE + 1])
def test_a_mirrored_region_is_a_multiple_of_the_page(length: int) -> None:
    with no_descriptor_is_lost(), pytest.raises(Refused, match="multiple of the page"):
        Region.memfd("twice", length, mirrored=True)


# ---- visibility and forks ----------------------------------------------------------------------------------


def test_a_forked_child_writes_to_a_shared_region_and_to_its_own_copy_of_a_private_one() -> None:
    shared, private = Region.anonymous(1), Region.anonymous(1, visibility=Visibility.PRIVATE)
    with shared, private:

        def body() -> None:
            shared[0] = private[0] = 1

        assert exit_code_in_a_fork(body) == 0
        assert (shared[0], private[0]) == (1, 0)


def test_a_private_region_sees_what_others_write_until_it_has_written_to_the_page() -> None:
    shared = Region.memfd("seen", PAGE)
    with shared, Region.map(shared, visibility=Visibility.PRIVATE) as private:
        shared[0] = 1
        assert private[0] == 1
        private[1] = 7
        shared[0] = 2
        assert private[0] == 1


def test_a_forked_child_closes_its_own_mapping_only() -> None:
    with Region.memfd("both", PAGE) as region:
        assert exit_code_in_a_fork(region.close) == 0
        region[0] = 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_while_a_thread_is_inside_a_call_can_close_its_region() -> None:
    region = Region.anonymous(16 << 20)
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            region.populate()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        codes = [exit_code_in_a_fork(region.close) for _ in range(5)]
    finally:
        ended.set()
        thread.join()
    assert codes == [0] * 5
    region.close()


def test_a_memfd_region_is_shared_by_its_descriptor() -> None:
    with Region.memfd("passed", PAGE) as first, Region.map(first.fileno()) as second:
        first[0:5] = b"hello"
        assert second[0:5] == b"hello"


# ---- calls on the memory -----------------------------------------------------------------------------------


def test_resident_tells_the_pages_that_have_been_touched() -> None:
    with Region.anonymous(3 * PAGE + 1) as region:
        region[PAGE] = 1
        assert region.resident() == [False, True, False, False]
        assert region.resident(PAGE - 1, 2) == [False, True]
        region.populate(3 * PAGE)
        assert region.resident() == [False, True, False, True]
        region.populate()
        assert region.resident() == [True] * 4


def test_populating_a_private_region_for_reading_makes_no_copies(path: Path) -> None:
    with Region.map(path, visibility=Visibility.PRIVATE) as region:
        region.populate(write=False)
        with path.open("r+b") as file:
            file.write(b"X")
        assert region[0] == ord("X")
        region.populate()
        with path.open("r+b") as file:
            file.write(b"Y")
        assert region[0] == ord("X")


def forget_the_populate_advice() -> None:
    """Make this process's kernel older than 5.14: a seccomp filter answers EINVAL to MADV_POPULATE_*."""
    madvise = {"x86_64": 28, "aarch64": 233}[platform.machine()]
    code = [
        (0x20, 0, 0, 0),  # A = the number of the system call
        (0x15, 0, 3, madvise),  # another: allow
        (0x20, 0, 0, 32),  # A = its third argument
        (0x15, 2, 0, 22),  # MADV_POPULATE_READ: refuse
        (0x15, 1, 0, 23),  # MADV_POPULATE_WRITE: refuse
        (0x06, 0, 0, 0x7FFF0000),  # allow
        (0x06, 0, 0, 0x00050000 | errno.EINVAL),
    ]
    packed = b"".join(struct.pack("HBBI", *step) for step in code)
    steps = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="needs a system call number")
def test_an_older_kernel_populates_by_touching_what_is_anonymous_and_reads_a_file_ahead(path: Path) -> None:
    shared = Region.anonymous(2 * PAGE + 1)
    private = Region.anonymous(2 * PAGE, visibility=Visibility.PRIVATE, mirrored=True)
    reader = Region.anonymous(2 * PAGE, prot=Prot.READ)
    file = Region.map(path, prot=Prot.READ)
    shared[PAGE] = 7

    def body() -> None:
        forget_the_populate_advice()
        for region in (shared, private, reader, file):
            region.populate()
            assert all(region.resident())
        assert shared[:] == bytes(PAGE) + b"\7" + bytes(PAGE)

    with shared, private, reader, file:
        assert exit_code_in_a_fork(body) == 0


def test_populating_beyond_the_protection_is_refused() -> None:
    with Region.anonymous(PAGE, prot=Prot.READ) as region:
        region.populate()
        with pytest.raises(Refused, match="protect"):
            region.populate(write=True)
        region.protect(Prot.NONE)
        with pytest.raises(Refused, match="protect"):
            region.populate()


def test_populating_a_file_that_has_become_shorter_is_an_error_where_a_touch_is_a_signal(path: Path) -> None:
    with Region.map(path, offset=PAGE) as region:
        os.truncate(path, 2 * PAGE)
        region.populate(0, PAGE)
        with pytest.raises(Refused, match="shorter"):
            region.populate()
        assert exit_code_in_a_fork(lambda: region[PAGE]) < 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, None), (0, -1), (PAGE + 1, None), (0, PAGE + 1), (PAGE, 1), (1, PAGE), (1 << 40, 0)],
)
def test_a_range_outside_the_region_is_refused(offset: int, length: int | None) -> None:
    with Region.memfd("range", PAGE, mirrored=True) as region:
        calls = (
            region.flush,
            region.populate,
            region.resident,
            lambda o, n: region.advise(Advice.NORMAL, o, n),
        )
        for call in calls:
            with pytest.raises(Refused, match="outside the region"):
                call(offset, length)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (PAGE, 0), (PAGE, None), (0, PAGE), (PAGE - 1, 1), (1, None)]
)
def test_a_range_inside_the_region_is_granted_up_to_its_edges(offset: int, length: int | None) -> None:
    with Region.memfd("range", PAGE) as region:
        region.flush(offset, length)
        region.flush(offset, length, wait=False)
        region.populate(offset, length)
        region.advise(Advice.WILLNEED, offset, length)
        expected = [True] if offset < PAGE and length != 0 else []
        assert region.resident(offset, length) == expected


def test_every_advice_is_taken_or_refused_in_words() -> None:
    for visibility in Visibility:
        with Region.anonymous(4 * PAGE, visibility=visibility) as region:
            for advice in Advice:
                with contextlib.suppress(Refused, NoSpace):
                    region.advise(advice)


def test_dontneed_drops_what_a_private_region_had_written(path: Path) -> None:
    with Region.map(path, visibility=Visibility.PRIVATE) as region:
        region[0] = ord("X")
        region.advise(Advice.DONTNEED)
        assert region[0] == ord("a")


@pytest.mark.parametrize("code", [9, 10, 22, 23, 100, 101, -1, 1 << 20])
def test_advice_that_could_end_in_a_signal_is_refused_by_the_native_type_too(code: int) -> None:
    region = _core.Region.map(-1, PAGE, 3, True)
    with pytest.raises(OSError, match="Invalid"):
        region.advise(code)
    region.close()


def test_locked_pages_are_resident_and_unlocking_twice_is_harmless() -> None:
    with Region.anonymous(2 * PAGE) as region:
        region.lock()
        assert region.resident() == [True, True]
        region.unlock()
        region.unlock()
        region.protect(Prot.NONE)
        with pytest.raises(Refused, match="NONE"):
            region.lock()


def test_locking_beyond_the_limit_names_it() -> None:
    region = Region.anonymous(16 * PAGE)

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, PAGE))
        if os.geteuid() == 0:
            os.setuid(65534)  # the superuser has no such limit
        with pytest.raises(NoSpace, match=r"RLIMIT_MEMLOCK"):
            region.lock()

    with region:
        assert exit_code_in_a_fork(body) == 0


def test_threads_that_use_close_and_protect_one_region_get_answers_and_no_crash() -> None:
    region = Region.memfd("threads", 4 * PAGE, mirrored=True)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        allowed = (BufferError, Closed, Refused, TypeError)
        calls: list[Callable[[], object]] = [
            lambda: region[PAGE],
            lambda: region.__setitem__(PAGE, 1),
            lambda: region.protect(Prot.READ),
            lambda: region.protect(READ_WRITE),
            region.populate,
            region.flush,
            region.resident,
        ]
        try:
            for step in range(400):
                with contextlib.suppress(*allowed):
                    calls[(seed * 31 + step * (seed + 1)) % len(calls)]()
            while not region.closed:
                with contextlib.suppress(BufferError):
                    region.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert region.closed


# ---- the native type ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, -1, -(1 << 63)])
def test_the_native_type_refuses_a_length_that_is_not_positive(length: int) -> None:
    with pytest.raises(ValueError, match="length"):
        _core.Region.map(-1, length, 3, True)


def test_the_native_type_refuses_what_cannot_be_addressed() -> None:
    for mirrored, error in ((True, ValueError), (False, OSError)):
        with pytest.raises(error):
            _core.Region.map(-1, sys.maxsize, 3, True, 0, mirrored)


def test_the_native_type_refuses_unknown_rights() -> None:
    with pytest.raises(ValueError, match="unknown bits"):
        _core.Region.map(-1, 1, 8, True)
    region = _core.Region.map(-1, 1, 3, True)
    for prot in (8, -1, 1 << 40):
        with pytest.raises(ValueError, match="unknown bits"):
            region.protect(prot)
    region.close()


def test_a_free_threaded_interpreter_is_told_to_use_another() -> None:
    code = "import sys; sys.abiflags = 't'; import shmbus._core"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "free-threaded" in done.stderr
