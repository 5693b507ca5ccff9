"""Holding a bus: the folder, the lock, the socket, the list of channels."""

import fcntl
import os
import re
import socket
import stat
import threading

import pytest
from broker_help import python

from shmbus import broker_hold, places
from shmbus.broker_hold import ChannelList, Hold, Listed
from shmbus.control_io import open_process, start_ticks
from shmbus.errors import Refused
from shmbus.places import check_socket_path, make_private_folder, runtime_folder, socket_path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


# The folder -------------------------------------------------------------------------------------------------


def test_sockets_live_in_a_closed_folder_below_the_runtime_folder(runtime):
    assert runtime_folder(create=True) == str(runtime / "shmbus")
    assert stat.S_IMODE((runtime / "shmbus").stat().st_mode) == 0o700
    assert socket_path("plant") == str(runtime / "shmbus" / "plant.sock")
    (runtime / "shmbus").rmdir()


def test_asking_for_a_path_makes_nothing(runtime):
    assert socket_path("plant") == str(runtime / "shmbus" / "plant.sock")
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("value", [None, "", "relative/folder", "/does/not/exist"])
def test_without_a_runtime_folder_it_is_one_of_the_users_own_in_the_temporary_one(
    monkeypatch, value, tmp_path
):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    if value is not None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    monkeypatch.setattr(places, "_temporary", lambda: str(tmp_path))
    assert runtime_folder(create=True) == str(tmp_path / f"shmbus-{os.geteuid()}")


@needs_root
def test_a_runtime_folder_of_another_user_is_not_used(runtime, monkeypatch, tmp_path_factory):
    other = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(places, "_temporary", lambda: str(other))
    os.chown(runtime, 12345, -1)
    assert runtime_folder() == str(other / f"shmbus-{os.geteuid()}")


def test_a_folder_that_others_can_enter_is_refused_with_the_command_that_mends_it(runtime):
    (runtime / "shmbus").mkdir(mode=0o755)
    with pytest.raises(Refused, match=r"0755.*chmod 700 " + re.escape(str(runtime))):
        socket_path("plant")
    with pytest.raises(Refused, match="0755"):
        runtime_folder(create=True)


def test_a_folder_that_is_a_symbolic_link_is_refused(runtime, tmp_path_factory):
    (runtime / "shmbus").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(Refused, match="symbolic link"):
        socket_path("plant")


def test_a_folder_that_is_a_file_is_refused(runtime):
    (runtime / "shmbus").touch()
    with pytest.raises(Refused, match="no folder"):
        runtime_folder(create=True)


@needs_root
def test_a_folder_of_another_user_is_refused(runtime):
    (runtime / "shmbus").mkdir(mode=0o700)
    os.chown(runtime / "shmbus", 12345, -1)
    with pytest.raises(Refused, match="12345"):
        socket_path("plant")


def test_a_path_that_is_too_long_is_refused_with_its_length_and_the_limit(tmp_path):
    longest = "/" + "x" * 106
    assert check_socket_path(longest) == longest
    with pytest.raises(Refused, match=r"108 bytes.*107 \(SOCKET_PATH_BYTES\)"):
        check_socket_path(longest + "x")
    with pytest.raises(Refused, match="SOCKET_PATH_BYTES"):
        Hold(str(tmp_path / ("y" * 100)), bus_name="b")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(Refused):
        check_socket_path(path)


def test_private_folders_are_new_and_closed(runtime):
    one, two = make_private_folder(), make_private_folder()
    assert one != two
    for folder in (one, two):
        assert os.path.dirname(folder) == str(runtime)
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        os.rmdir(folder)


# The lock and the socket ------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "b.sock")


def test_a_held_bus_has_a_socket_for_this_user_alone_and_leaves_nothing(path, tmp_path):
    hold = Hold(path, bus_name="b")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(hold.lock_path).st_mode) == 0o600
    assert not os.get_inheritable(hold.listener.fileno())
    hold.release()
    hold.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_mode_of_the_socket_is_the_one_asked_for_whatever_the_umask(path, umask):
    before = os.umask(umask)
    try:
        hold = Hold(path, bus_name="b", mode=0o660)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    hold.release()


def test_a_second_holder_is_refused_by_naming_the_first(path):
    hold = Hold(path, bus_name="plant")
    with pytest.raises(Refused) as refused:
        Hold(path, bus_name="plant")
    assert f"'plant' at {path} is held by process {os.getpid()} (" in str(refused.value)
    assert re.search(r"python.*since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", str(refused.value))
    hold.release()


def test_a_holder_that_has_not_written_its_name_yet_is_still_a_holder(path):
    hold = Hold(path, bus_name="b")
    with open(hold.lock_path, "w") as lock:
        lock.write(f"pid={os.getpid()}\nstart=1\n")  # of a process long dead, whose number is ours now
    with pytest.raises(Refused, match="only just starting"):
        Hold(path, bus_name="b")
    hold.release()


def test_of_many_that_start_at_once_one_gets_the_bus(path):
    for _ in range(20):
        barrier, holds, refused = threading.Barrier(8), [], []

        def start(barrier=barrier, holds=holds, refused=refused):
            barrier.wait()
            try:
                holds.append(Hold(path, bus_name="b"))
            except Refused as error:
                refused.append(error)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(holds), len(refused)) == (1, 7)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        holds[0].release()


def test_a_lock_file_that_is_unlinked_before_it_is_locked_is_no_lock(path, monkeypatch):
    real, stolen = fcntl.flock, []

    def unlink_first(fd, operation):
        if not stolen:
            os.unlink(path.replace(".sock", ".lock"))
            stolen.append(fd)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", unlink_first)
    hold = Hold(path, bus_name="b")
    with pytest.raises(Refused, match=f"process {os.getpid()}"):
        Hold(path, bus_name="b")
    hold.release()


def test_a_lock_file_that_is_replaced_before_it_is_locked_is_no_lock(path, monkeypatch):
    real, others = fcntl.flock, []

    def replace_first(fd, operation):
        if not others:
            lock_path = path.replace(".sock", ".lock")
            os.unlink(lock_path)
            others.append(os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600))
            real(others[0], operation)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    with pytest.raises(Refused, match="only just starting"):
        Hold(path, bus_name="b")
    os.close(others[0])
    Hold(path, bus_name="b").release()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_a_lock_file_that_is_something_else_is_refused(path, make):
    make(path.replace(".sock", ".lock"))
    with pytest.raises(Refused, match="lock"):
        Hold(path, bus_name="b")


@needs_root
def test_a_lock_file_of_another_user_is_refused(path):
    lock = path.replace(".sock", ".lock")
    os.close(os.open(lock, os.O_CREAT | os.O_RDWR))
    os.chown(lock, 12345, -1)
    with pytest.raises(Refused, match="12345"):
        Hold(path, bus_name="b")


def test_a_socket_that_nobody_answers_at_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    hold = Hold(path, bus_name="b")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    hold.release()


def test_a_socket_that_somebody_answers_at_is_left_alone_even_without_its_lock(path):
    hold = Hold(path, bus_name="b")
    os.unlink(hold.lock_path)
    with pytest.raises(Refused, match=f"held by process {os.getpid()}"):
        Hold(path, bus_name="b")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    hold.release()


@pytest.mark.parametrize("make", [lambda path: open(path, "w").close(), os.mkdir, os.mkfifo])
def test_what_is_no_socket_is_never_removed(path, make, tmp_path):
    make(path)
    with pytest.raises(Refused, match="no socket is there"):
        Hold(path, bus_name="b")
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.sock"]


def test_a_socket_that_somebody_put_in_place_of_ours_is_left_alone(path):
    hold = Hold(path, bus_name="b")
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        hold.release()
        assert os.path.exists(path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refused, match="No such file"):
        Hold(str(tmp_path / "missing" / "b.sock"), bus_name="b")


def test_a_forked_child_that_closes_its_copy_of_the_lock_gives_nothing_back(path):
    hold = Hold(path, bus_name="b")
    child = os.fork()
    if child == 0:
        os.close(hold._lock)
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(Refused, match="is held"):
        Hold(path, bus_name="b")
    hold.release()


HOLDER = """
import sys
from shmbus.broker_hold import Hold
hold = Hold(sys.argv[1], bus_name="b")
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_killed_holder_leaves_a_bus_that_can_be_taken(path):
    with python(HOLDER, path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Refused, match=f"process {process.pid} .*since"):
            Hold(path, bus_name="b")
        process.kill()
        process.wait()
    assert os.path.exists(path)
    Hold(path, bus_name="b").release()
    assert not os.path.exists(path)


# The list of channels ---------------------------------------------------------------------------------------


@pytest.fixture
def listing(tmp_path):
    return ChannelList(str(tmp_path / "b.channels"))


ROWS = [
    Listed("jobs", b"i" * 16, frozenset({(12, 1 << 40), (13, 5)})),
    Listed("ö/\n", b"j" * 16, frozenset()),
]


def test_the_list_is_read_as_it_was_written_and_an_empty_one_is_no_file(listing, tmp_path):
    assert listing.read() == []
    listing.write(ROWS)
    assert listing.read() == ROWS
    assert stat.S_IMODE(os.stat(listing.path).st_mode) == 0o600
    listing.write(ROWS[:1])
    assert listing.read() == ROWS[:1]
    listing.write([])
    listing.write([])
    assert list(tmp_path.iterdir()) == []


def test_a_full_list_can_be_written(listing):
    people = frozenset((1 << 22, start) for start in range(256))
    rows = [Listed(f"{index:0128}", bytes(16), people) for index in range(1024)]
    listing.write(rows)
    assert listing.read() == rows
    listing.write([])


def test_a_draft_that_a_killed_broker_left_is_overwritten(listing, tmp_path):
    (tmp_path / "b.channels.new").write_bytes(b"half of a li")
    listing.write(ROWS)
    assert listing.read() == ROWS
    listing.write([])
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_another_boot_or_namespace_means_nothing(listing, monkeypatch):
    listing.write(ROWS)
    monkeypatch.setattr(broker_hold, "this_world", lambda: "elsewhere")
    assert listing.read() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: b"\x80",
        lambda data: data.replace(b"jobs", b"\xff\xff\xff\xff"),
    ],
)
def test_a_damaged_list_is_refused_and_not_overwritten(listing, damage):
    listing.write(ROWS)
    with open(listing.path, "rb") as file:
        damaged = damage(file.read())
    with open(listing.path, "wb") as file:
        file.write(damaged)
    with pytest.raises(Refused, match="remove the file"):
        listing.read()
    with open(listing.path, "rb") as file:
        assert file.read() == damaged


def test_a_list_that_is_a_symbolic_link_is_refused(listing):
    os.symlink("/dev/zero", listing.path)
    with pytest.raises(Refused, match="cannot be opened"):
        listing.read()


# Processes --------------------------------------------------------------------------------------------------


def test_a_process_is_found_by_pid_and_start_and_not_by_pid_alone():
    own = os.getpid()
    pidfd = open_process(own, start_ticks(own))
    os.close(pidfd)
    assert open_process(own, start_ticks(own) + 1) is None


def test_a_zombie_is_dead():
    child = os.fork()
    if child == 0:
        os._exit(0)
    started = start_ticks(child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert open_process(child, started) is None
    os.waitpid(child, 0)
    assert open_process(child, started) is None
