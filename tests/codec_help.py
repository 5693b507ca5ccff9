"""What the tests of the codecs share: the way there and back, and messages to send."""

import warnings
from datetime import UTC

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from shmbus import limits
from shmbus.codec import get_codec
from shmbus.errors import DecodeError

#: Settings of property tests: a busy machine is no failure.
by_examples = settings(
    deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

#: The size from which a buffer is a part of its own.
LARGE = limits.OUT_OF_BAND_BYTES


def joined(parts):
    return b"".join(parts)


def through(codec, message):
    """There and back: by parts and in one piece, which must be the same frame."""
    frame = joined(codec.encode_parts(message))
    assert bytes(codec.encode(message)) == frame
    return codec.decode(frame)


def value_or_error(frame):
    """Decode a frame of msgpack's, or anyone's: whatever is raised is a DecodeError that makes sense."""
    error = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            get_codec("msgpack").decode(frame)
        except DecodeError as raised:
            error = raised
    assert error is None or error.offset is None or 0 <= error.offset <= len(frame)
    assert error is None or "recv_bytes()" in str(error) or "array" in str(error)


#: Messages that come back as they were.
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.binary(max_size=40)
    | st.sampled_from([bytes(LARGE), b"x" * (LARGE + 3), "é" * LARGE])
    | st.datetimes(timezones=st.just(UTC))
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | st.integers(-(1 << 63), (1 << 64) - 1)
messages = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)
