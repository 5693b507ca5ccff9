"""Every error: one family, and nothing lost on the way from a worker."""

import copy
import pickle

import pytest

from shmbus import errors

ALL = [getattr(errors, name) for name in errors.__all__]
DETAILS = [
    (errors.PeerDied, {"pid": 4711}),
    (errors.Refused, {"setting": "capacity"}),
    (errors.TooLarge, {"size_bytes": 70_000, "limit_bytes": 32_768}),
    (errors.NoSpace, {"needed_bytes": 1 << 40}),
    (errors.NoBroker, {"path": "/run/user/1000/shmbus/a.sock"}),
    (errors.EncodeError, {"path": 'msg["a"][3]', "type_name": "set"}),
    (errors.DecodeError, {"offset": 17}),
    (errors.WorkerFailed, {"name": "consume-1", "pid": 9, "exit_code": -9, "traceback_text": "Traceback …"}),
]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_a_shmbus_error_with_its_message_and_a_docstring(kind):
    error = kind("what, where, how to mend it")
    assert isinstance(error, errors.ShmbusError)
    assert str(error) == "what, where, how to mend it"
    assert len(kind.__doc__) > 40


@pytest.mark.parametrize("kind", ALL)
def test_every_error_can_be_raised_by_its_class_alone(kind):
    with pytest.raises(kind):
        raise kind


@pytest.mark.parametrize(("kind", "details"), DETAILS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_keeps_its_details_through_a_pickle(kind, details, protocol):
    error = kind("the message", **details)
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == "the message"
        assert {name: getattr(twin, name) for name in details} == details


@pytest.mark.parametrize(("kind", "details"), DETAILS)
def test_details_that_are_not_known_have_a_value_all_the_same(kind, details):
    error = kind("the message")
    for name in details:
        assert getattr(error, name) in (None, "msg", "object")


def test_a_timeout_is_caught_by_code_that_knows_only_the_built_in_one():
    error = errors.TimedOut("nothing arrived within 2 s")
    assert isinstance(error, TimeoutError)
    assert str(pickle.loads(pickle.dumps(error))) == "nothing arrived within 2 s"


def test_the_errors_do_not_stand_in_for_built_in_ones_by_accident():
    for kind in ALL:
        if kind is not errors.TimedOut:
            assert not issubclass(kind, (OSError, ValueError, TypeError, StopIteration))
