"""What every test runs inside: a private runtime folder, a check that nothing is left behind, a watchdog.

A session (each worker of pytest-xdist has its own) gets a private folder with short names for
XDG_RUNTIME_DIR and TMPDIR, so that sockets fit their length limit and that whatever is still there at the
end was left by this session. After the last test, when all fixtures are gone, harness.leaks judges; a leak
is an error of that last test, with the name of the test after which the thing was first seen.
harness.watchdog ends a test that hangs.

For tests:
    unique       a short name that no other test uses, for buses, channels and regions
    await_end    wait for the end of a process by pid, also of an orphan that became our child
    @pytest.mark.patience(seconds)   how long a test may take before it counts as hung
"""

import contextlib
import itertools
import os
import resource
import select
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from harness.leaks import LeakCheck
from harness.watchdog import Watchdog

#: Seconds for one test, set-up and tear-down included, before it counts as hung.
PATIENCE = float(os.environ.get("SHMBUS_TEST_PATIENCE", "120"))
LONG_PATIENCE = 3600.0
#: Seconds that processes told to end are given at the end of the session.
GRACE = float(os.environ.get("SHMBUS_TEST_GRACE", "10"))
LEAVING = 60.0

_numbers = itertools.count()


class Session:
    """The one session of this process."""

    def __init__(self, config: pytest.Config) -> None:
        self.pid = os.getpid()
        self.private = Path(tempfile.mkdtemp(prefix="sbt-"))
        self.run, self.temporary = self.private / "run", self.private / "t"
        self.run.mkdir(mode=0o700)
        self.temporary.mkdir(mode=0o700)
        self.hung: list[str] = []
        self.judged = False
        self.ran_a_test = False
        if config.option.basetemp is None:  # under xdist the first process decides for its workers
            config.option.basetemp = str(self.private / "p")
        os.environ["XDG_RUNTIME_DIR"] = str(self.run)
        os.environ["TMPDIR"] = str(self.temporary)
        os.environ["PYTHONFAULTHANDLER"] = "1"
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        self.watchdog = Watchdog(self.private, self._on_hang)
        self.leaks = LeakCheck([self.run, self.temporary], spare=[self.watchdog.pid], grace=GRACE)

    def _on_hang(self, text: str) -> None:
        self.hung.append(text)
        pytest.fail(text, pytrace=True)

    def judge(self) -> str | None:
        """The text of the leaks, or None; once."""
        if self.judged or not self.ran_a_test or os.getpid() != self.pid:
            return None
        self.judged = True
        lines = self.leaks.finish()
        return "left behind by the session:\n  " + "\n  ".join(lines) if lines else None


SESSION = pytest.StashKey[Session]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "patience(seconds): a test that takes longer counts as hung")
    config.stash[SESSION] = session = Session(config)
    if getattr(config.option, "dist", "no") == "no" or hasattr(config, "workerinput"):
        session.watchdog.watch(PATIENCE, "collection", soft=False)  # xdist's first process collects nothing


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    ours = session.config.stash[SESSION]
    ours.watchdog.calm()
    ours.leaks.begin()


def patience_of(item: pytest.Item) -> float:
    """Seconds that a test may take."""
    marker = item.get_closest_marker("patience")
    if marker is not None:
        return float(marker.args[0])
    return LONG_PATIENCE if item.get_closest_marker("long") is not None else PATIENCE


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    ours = item.config.stash[SESSION]
    ours.ran_a_test = True
    ours.watchdog.watch(patience_of(item), item.nodeid)
    try:
        return (yield)
    finally:
        ours.watchdog.calm()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """After everything else: remember what is new, and judge when no fixture is left."""
    ours = item.config.stash[SESSION]
    failed = True
    try:
        yield
        failed = False
    finally:
        ours.leaks.note(item.nodeid)
        if nextitem is None:
            text = ours.judge()
            if text and not failed:
                pytest.fail(text, pytrace=False)
            elif text:
                print(text)  # shown with the failure that is on its way


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that hung does not pass, whatever it made of the exception."""
    report = yield
    ours = item.config.stash[SESSION]
    if ours.hung and report.passed:
        report.outcome = "failed"
        report.longrepr = ours.hung[-1]
    if not report.passed:
        ours.hung.clear()
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
    """Judge here if the last test never came: -x, Ctrl-C."""
    ours = session.config.stash[SESSION]
    try:
        return (yield)
    finally:
        ours.watchdog.watch(LEAVING, "the end of the session", soft=False)
        text = ours.judge()
        if text or ours.hung:
            print("\n" + (text or ours.hung[-1]))
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    ours = config.stash.get(SESSION, None)
    if ours is not None:
        shutil.rmtree(ours.private, ignore_errors=True)
        ours.watchdog.leave(LEAVING)


@pytest.fixture
def unique() -> str:
    """A short name that no other test, worker or session uses at this time."""
    return f"t{os.getpid():x}-{next(_numbers)}"


@pytest.fixture
def await_end() -> Callable[[int], None]:
    """Wait until the process with a pid has ended.

    An orphan below the test process becomes its child and, once ended, stays a zombie that kill(pid, 0)
    still finds; this waits by pidfd and then lets go of it.  A child that somebody else waits for (Popen,
    Process) is left to them.
    """

    def wait(pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        with contextlib.closing(os.fdopen(descriptor, "rb", buffering=0)) as file:
            select.select([file], [], [])

    return wait
