"""What is under regions: sizes that stay, space that is there, limits by name, nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from region_help import exit_code_in_a_fork, no_descriptor_is_lost

from shmbus import space
from shmbus.backing import create_file, create_memfd, create_named, create_shm
from shmbus.errors import NoSpace, Refused
from shmbus.limits import PAGE_BYTES as PAGE

HUGE = 1 << 50
LENGTHS = [1, PAGE - 1, PAGE, PAGE + 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1]


def allocated_bytes(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def entries_of(label: str) -> list[str]:
    return [entry for entry in os.listdir("/dev/shm") if label in entry]


def whole_pages(length: int) -> int:
    return -(-length // PAGE) * PAGE


@pytest.fixture(params=["memfd", "shm", "file"])
def create(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Callable[..., int]:
    """One of the three makers, as a function of lengths only."""
    if request.param == "file":
        return lambda *lengths: create_file(str(tmp_path / "new"), *lengths)
    maker = create_memfd if request.param == "memfd" else create_shm
    return lambda *lengths: maker(unique, *lengths)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_new_descriptor_has_its_length_and_all_of_its_space(
    create: Callable[..., int], length: int
) -> None:
    fd = create(length)
    status = os.fstat(fd)
    assert (status.st_size, status.st_mode & 0o7777) == (length, 0o600)
    assert allocated_bytes(fd) >= whole_pages(length)
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("reserved", [0, 1, PAGE, 3 * PAGE])
def test_only_what_is_to_be_reserved_is_allocated(create: Callable[..., int], reserved: int) -> None:
    fd = create(1 << 30, reserved)
    assert os.fstat(fd).st_size == 1 << 30
    assert whole_pages(reserved) <= allocated_bytes(fd) <= whole_pages(reserved) + 64 * PAGE
    os.close(fd)


@pytest.mark.parametrize(("length", "reserved"), [(0, None), (-1, None), (1 << 62, None), (1, 2), (1, -1)])
def test_a_length_that_is_not_possible_is_refused(
    create: Callable[..., int], length: int, reserved: int | None
) -> None:
    with no_descriptor_is_lost(), pytest.raises(Refused, match="length_bytes"):
        create(length, reserved)


def test_what_no_machine_has_is_no_space_and_leaves_nothing(
    create: Callable[..., int], unique: str, tmp_path: Path
) -> None:
    with no_descriptor_is_lost(), pytest.raises(NoSpace, match=r"1048576\.0 GiB") as caught:
        create(HUGE)
    assert caught.value.needed_bytes == HUGE
    assert entries_of(unique) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_is_named(create: Callable[..., int], tmp_path: Path) -> None:
    def body() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))
        with no_descriptor_is_lost(), pytest.raises(NoSpace, match=r"RLIMIT_FSIZE \(4.0 KiB"):
            create(2 * PAGE)

    assert exit_code_in_a_fork(body) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_timer_that_ticks_all_the_time_does_not_stop_an_allocation(create: Callable[..., int]) -> None:
    ticks: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        fd = create(64 << 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert allocated_bytes(fd) >= 64 << 20
    os.close(fd)


# ---- memfd ------------------------------------------------------------------------------------------------


def test_a_memfd_can_neither_shrink_nor_grow_nor_be_unsealed() -> None:
    fd = create_memfd("sealed", PAGE)
    for length in (0, PAGE - 1, PAGE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, length)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.pwrite(fd, b"x", PAGE - 1)
    os.close(fd)


def test_a_kernel_that_does_not_know_the_newest_flag_makes_a_memfd_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, asked = os.memfd_create, list[int]()

    def old_kernel(name: str, flags: int) -> int:
        asked.append(flags)
        if flags & ~(os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old_kernel)
    fd = create_memfd("old", PAGE)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    assert len(asked) == 2
    os.close(fd)


@pytest.mark.parametrize("label", ["", "a/b", "ü", "x" * 249])
def test_any_text_is_a_label(label: str) -> None:
    for maker in (create_memfd, create_shm):
        os.close(maker(label, 1))


@pytest.mark.parametrize("label", ["a\0b", "x" * 250, "ü" * 125])
def test_a_label_that_the_kernel_cannot_take_is_refused(label: str) -> None:
    for maker in (create_memfd, create_shm):
        with pytest.raises(Refused, match="label"):
            maker(label, 1)


# ---- POSIX shared memory and files ------------------------------------------------------------------------


def test_shared_memory_has_no_entry_while_it_is_in_use(unique: str) -> None:
    fd = create_shm(unique, PAGE)
    assert entries_of(unique) == []
    shown = os.readlink(f"/proc/self/fd/{fd}")
    assert unique in shown
    assert shown.endswith("(deleted)")
    os.close(fd)


def test_no_resource_tracker_is_started() -> None:
    code = """
        import os, sys
        from shmbus.backing import create_shm
        from shmbus.region import Region
        os.close(create_shm("x", 1))
        Region.named(f"/{sys.argv[1]}", 1, create=True).close()
        assert not any(name.startswith("multiprocessing") for name in sys.modules)
    """
    name = f"t{os.getpid():x}-tracker"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), name], check=True)


def test_a_file_that_exists_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_bytes(b"mine")
    with no_descriptor_is_lost(), pytest.raises(Refused, match="exists already"):
        create_file(str(path), PAGE)
    assert path.read_bytes() == b"mine"


def test_a_missing_folder_is_the_error_that_open_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        create_file(str(tmp_path / "missing" / "file"), PAGE)


def test_a_named_region_without_room_leaves_no_name(unique: str) -> None:
    with no_descriptor_is_lost(), pytest.raises(NoSpace):
        create_named(f"/{unique}", HUGE)
    assert not os.path.exists(f"/dev/shm/{unique}")


# ---- small file systems -----------------------------------------------------------------------------------


def run_with_a_small_dev_shm(code: str) -> None:
    """Run code in a process of its own whose /dev/shm is 64 KiB, as a container's is 64 MB."""
    mount = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'
    shell = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*shell, mount, "sh", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system in a namespace of its own")
    command = [*shell, mount, "sh", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_dev_shm_that_is_too_small_is_no_space_at_once() -> None:
    run_with_a_small_dev_shm("""
        import os
        from shmbus.backing import create_shm
        from shmbus.errors import NoSpace
        from shmbus.region import Region

        for make in (create_shm, lambda _, length: Region.named("/big", length, create=True)):
            try:
                make("big", 1 << 20)
            except NoSpace as error:
                assert "/dev/shm: 64.0 KiB" in str(error) and "--shm-size" in str(error), error
                assert error.needed_bytes == 1 << 20
            else:
                raise AssertionError("no error")
            assert os.listdir("/dev/shm") == []
        os.close(create_shm("fits", 64 << 10))
    """)


def test_a_file_on_a_full_file_system_is_no_space_and_is_taken_away_again() -> None:
    run_with_a_small_dev_shm("""
        import os
        from shmbus.backing import create_file
        from shmbus.errors import NoSpace

        try:
            create_file("/dev/shm/big", 1 << 20)
        except NoSpace as error:
            assert "file '/dev/shm/big' needs 1.0 MiB" in str(error), error
        else:
            raise AssertionError("no error")
        assert os.listdir("/dev/shm") == []
    """)


def test_populating_a_sparse_file_on_a_full_file_system_is_no_space_where_a_touch_is_a_signal() -> None:
    run_with_a_small_dev_shm("""
        import os, resource
        from shmbus.errors import NoSpace
        from shmbus.region import Region

        with open("/dev/shm/sparse", "wb") as file:
            file.truncate(1 << 20)
        region = Region.map("/dev/shm/sparse")
        try:
            region.populate()
        except NoSpace as error:
            assert "/dev/shm" in str(error), error
        else:
            raise AssertionError("no error")
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            region[len(region) - 1] = 1
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    """)


# ---- room -------------------------------------------------------------------------------------------------

MEMINFO = "MemTotal: 999999 kB\nMemAvailable:    1024 kB\nSwapFree:        {swap} kB\n"


def machine(folder: Path, *, swap_kib: int = 0, cgroup: str = "") -> dict[str, str]:
    """A machine with 1 MiB available, as check_memory_room reads it."""
    proc, cgroups = folder / "proc", folder / "cgroups"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    (proc / "meminfo").write_text(MEMINFO.format(swap=swap_kib))
    (proc / "self" / "cgroup").write_text(cgroup)
    return {"proc": str(proc), "cgroups": str(cgroups)}


def group(folder: Path, path: str, **files: str) -> None:
    """A control group: its files, with a dot for each double underscore."""
    where = folder / "cgroups" / path
    where.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (where / name.replace("__", ".")).write_text(text)


def test_the_machine_has_room_up_to_its_available_memory_and_swap(tmp_path: Path) -> None:
    where = machine(tmp_path, swap_kib=1024)
    space.check_memory_room(2 << 20, "it", **where)
    with pytest.raises(NoSpace, match=r"it needs .* the machine has 2.0 MiB .*MemAvailable"):
        space.check_memory_room((2 << 20) + 1, "it", **where)


def test_a_control_group_around_this_one_limits_too_and_its_file_is_named(tmp_path: Path) -> None:
    where = machine(tmp_path, cgroup="0::/outer/inner\n")
    group(tmp_path, "outer", memory__max="65536\n", memory__current="16384\n")
    group(tmp_path, "outer/inner", memory__max="max\n", memory__current="8192\n")
    space.check_memory_room(49152, "it", **where)
    with pytest.raises(NoSpace, match=r"control group has 48.0 KiB .*outer/memory.max"):
        space.check_memory_room(49153, "it", **where)


def test_cached_file_pages_of_a_control_group_count_as_room(tmp_path: Path) -> None:
    where = machine(tmp_path, cgroup="0::/one\n")
    group(tmp_path, "one", memory__max="65536", memory__current="65536", memory__stat="inactive_file 4096\n")
    space.check_memory_room(4096, "it", **where)
    with pytest.raises(NoSpace, match="control group"):
        space.check_memory_room(4097, "it", **where)


def test_a_control_group_of_the_first_version_limits_too(tmp_path: Path) -> None:
    where = machine(tmp_path, cgroup="5:cpu,memory:/one\n0::/\n")
    files = {"memory__limit_in_bytes": "65536", "memory__usage_in_bytes": "0"}
    group(tmp_path, "memory/one", **files)
    with pytest.raises(NoSpace, match="limit_in_bytes"):
        space.check_memory_room(65537, "it", **where)


def test_a_machine_that_tells_nothing_is_not_in_the_way(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    space.check_memory_room(HUGE, "it", proc=nothing, cgroups=nothing)
