"""For the tests of the broker: memory that is only three descriptors, a broker in a thread, a bare client."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import msgpack

from shmbus import control
from shmbus.broker_hold import ChannelList, Hold
from shmbus.broker_server import Broker
from shmbus.control_io import receive_some, send_some
from shmbus.errors import Corrupt, Refused
from shmbus.settings import Backing, ChannelSettings

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def region(content, seals=SEALS):
    """A memfd as a channel's region is one."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.fchmod(fd, 0o600)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@dataclass
class Someone:
    pid: int


class FakeMemory:
    """A channel's memory without a ring; it notes what is asked of it."""

    def __init__(self, settings, label, identity=None, descriptors=None):
        self.settings = settings
        self.label = label
        self.identity = identity or os.urandom(16)
        self._descriptors = descriptors
        self.calls = []
        self.people = []
        self.closed = False
        self.reaped = threading.Semaphore(0)

    @property
    def descriptors(self):
        if self._descriptors is None:
            header = msgpack.packb([self.identity, self.settings.to_wire(), self.label])
            self._descriptors = (
                region(header),
                region(b"data"),
                os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
            )
        return self._descriptors

    @property
    def control_fd(self):
        return -1 if self.settings.backing is Backing.ANONYMOUS else self.descriptors[0]

    @property
    def data_fd(self):
        return -1 if self.settings.backing is Backing.ANONYMOUS else self.descriptors[1]

    @property
    def event_fd(self):
        return -1 if self.settings.backing is Backing.ANONYMOUS else self.descriptors[2]

    def reap(self):
        self.reaped.release()
        return 0

    def close_channel(self):
        self.calls.append("close_channel")

    def drop_group(self, name):
        if name == "unknown":
            raise Refused("there is no group 'unknown'")
        self.calls.append(f"drop_group {name}")

    def participants(self):
        return self.people

    def stats(self):
        return {"sent_bytes": 64}

    def close(self):
        self.closed = True
        for fd in self._descriptors or ():
            os.close(fd)
        self._descriptors = ()


@dataclass
class FakeFactory:
    """Makes such memory; `before_create` is called in the thread that does."""

    before_create: object = None
    made: list = field(default_factory=list)

    def create(self, settings, label):
        if self.before_create is not None:
            self.before_create(label)
        self.made.append(FakeMemory(settings, label))
        return self.made[-1]

    def open(self, control_fd, data_fd, event_fd, settings):
        identity, _, label = self.check_offer(control_fd, data_fd)
        self.made.append(FakeMemory(settings, label, identity, (control_fd, data_fd, event_fd)))
        return self.made[-1]

    def check_offer(self, control_fd, data_fd):
        try:
            identity, settings, label = msgpack.unpackb(os.pread(control_fd, 4096, 0))
        except Exception:
            raise Corrupt("this is no channel") from None
        return identity, ChannelSettings.from_wire(settings), label


class Running:
    """A broker in a thread of this process."""

    def __init__(self, path, factory=None, *, bus_name="bus", mode=0o600, listed=False, **options):
        self.path = str(path)
        self.factory = factory or FakeFactory()
        self.hold = Hold(self.path, bus_name=bus_name, mode=mode)
        if listed:
            options["channel_list"] = ChannelList(self.hold.list_path)
        self._options = {"bus_name": bus_name, "factory": self.factory, **options}
        self._started = threading.Event()
        self.error = None
        self.end = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._started.wait()
        if self.error is not None:
            self._thread.join()
            self.hold.release()
            raise self.error

    def _run(self):
        try:
            anyio.run(self._main)
        except BaseException as error:
            self.error = error
        finally:
            self._started.set()

    async def _main(self):
        self.broker = Broker(self.hold.listener, **self._options)
        self._token = anyio.lowlevel.current_token()
        self._started.set()
        self.end = await self.broker.run()

    def call(self, function, *arguments):
        """Calls something in the broker's thread."""
        return anyio.from_thread.run_sync(function, *arguments, token=self._token)

    def hurry(self, frame_seconds):
        """From now on gives clients so little time, those who are connected too."""

        def change():
            self.broker._frame_seconds = frame_seconds
            for client in self.broker._clients:
                client.connection._frame_seconds = frame_seconds

        self.call(change)

    def join(self):
        """Waits until it has ended by itself."""
        self._thread.join()
        self.hold.release()
        if self.error is not None:
            raise self.error
        return self.end

    def stop(self, *, like_a_kill=False):
        """Ends it; like a kill, so that it leaves what a killed one leaves."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError, anyio.RunFinishedError):
                self.call(self.broker.stop, "the test is over")
        self._thread.join()
        if like_a_kill:
            self.hold.listener.close()
            os.close(self.hold._lock)
        else:
            self.hold.release()
        if self.error is not None:
            raise self.error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def let_others_through(path):
    """Makes the folders above a path passable for other users, as far as they are ours."""
    for folder in Path(path).parents:
        found = folder.stat()
        if found.st_uid == os.geteuid() and not found.st_mode & 0o001:
            folder.chmod(0o711)


class Bare:
    """A client that says exactly what it is told to."""

    def __init__(self, path, *, hello=True, role="client", pidfd=None):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection = control.ClientConnection()
        try:
            self.socket.connect(str(path))
            if hello:
                self.hello(role, pidfd)
        except BaseException:
            self.close()
            raise

    def hello(self, role="client", pidfd=None):
        own = os.pidfd_open(os.getpid()) if pidfd is None else pidfd
        try:
            # A broker that does not want us has said so, and closed, before it reads anything.
            with contextlib.suppress(BrokenPipeError):
                self.post("hello", {"role": role, "pid": os.getpid(), "command": "test"}, [own])
            return self.answer()
        finally:
            if pidfd is None:
                os.close(own)

    def post(self, name, fields, descriptors=()):
        request_id, frame = self.connection.request(name, fields)
        self.send(frame, descriptors)
        return request_id

    def send(self, data, descriptors=()):
        rest = memoryview(data)
        while rest:
            sent = send_some(self.socket, rest, descriptors)
            rest, descriptors = rest[sent:], ()

    def answer(self):
        """The next reply; None at the end of the connection."""
        while (reply := self.connection.next_reply()) is None:
            data, descriptors = receive_some(self.socket)
            if not data:
                return None
            self.connection.receive(data, descriptors)
        if reply.error is not None:
            raise reply.error
        return reply

    def ask(self, name, fields, descriptors=()):
        self.post(name, fields, descriptors)
        return self.answer()

    def open(self, name, settings=None, create=True, request="open"):
        wire = None if settings is None else settings.to_wire()
        reply = self.ask(request, {"name": name, "settings": wire, "create": create})
        for fd in reply.descriptors:
            os.close(fd)
        return reply.fields

    def close(self):
        self.socket.close()
        for fd in self.connection.take_descriptors():
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def offer_of(memory, name=None, **changes):
    """The fields and descriptors with which a channel is given back."""
    fields = {
        "name": name or memory.label,
        "settings": memory.settings.to_wire(),
        "identity": memory.identity,
    }
    return {**fields, **changes}, list(memory.descriptors)


@contextlib.contextmanager
def python(code, *arguments, **options):
    """Another interpreter that runs some code, with a line-wise pipe each way; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        **options,
    )
    with process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def open_descriptors():
    return {int(name) for name in os.listdir("/proc/self/fd")}


def forked(work):
    """A child that runs `work`, and reports an exception as its status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def expect_descriptors(client, wanted):
    """Wait until the descriptors are those: the end of a connection comes between answers to another."""
    for _ in range(10_000):
        client.ask("list", {"after": ""})
        if open_descriptors() == wanted:
            return
    raise AssertionError(
        f"left open: {[os.readlink(f'/proc/self/fd/{fd}') for fd in open_descriptors() - wanted]}"
    )


def repeat(step):
    while True:
        step()


def drain(semaphore):
    """Forget what has been counted so far."""
    while semaphore.acquire(blocking=False):
        pass
