"""The control protocol between a broker and its clients: requests, replies and a state table. No I/O.

Theory of operation
===================

Both ends are fed what a receive brought and hand out what it meant; the bytes that they return are for the
caller to send. Bytes, lengths, versions and descriptors are the business of ``control_frames``.

*A request* is ``{"request": name, "id": n, …fields}``; ids count up from 1 on each connection. Its answer is
``{"reply": n, …fields}`` or ``{"reply": n, "error": {…}}``. Requests are answered in the order in which they
came; a client may send the next before it has read the answer to the last. The broker says nothing unasked,
with one exception: reply 0 is always an error, it means the connection as a whole, and the connection ends
after it. ``REQUESTS`` lists every request with the exact fields and descriptors of both directions.

*The states* of a connection are the same at both ends and move with each request, sent or received::

    NEW ──hello──▶ READY ──shutdown──▶ ENDING
                   │   ▲
                   └───┘ every other request

What the table does not allow is :class:`~shmbus.errors.Refused` and moves the connection to ``BROKEN``, for
good: after a peer has broken one rule, nothing that it sends later can be trusted to mean what it says. A
request that the table allows and the broker cannot grant is an error in a reply, and the connection goes on.

Descriptors are plain numbers here. The caller closes those that it is given: with a request or a reply, or by
``take_descriptors`` when a connection ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from shmbus import errors
from shmbus.control_frames import VERSION, Frame, FrameDecoder, decode_body, encode_body, encode_frame
from shmbus.errors import Refused, ShmbusError

__all__ = [
    "FRAME_SECONDS",
    "PAGE_BYTES",
    "REQUESTS",
    "ROLES",
    "TRANSITIONS",
    "VERSION",
    "ClientConnection",
    "Frame",
    "FrameDecoder",
    "Reply",
    "Request",
    "ServerConnection",
    "Shape",
    "State",
    "decode_body",
    "encode_body",
    "encode_frame",
    "error_from_wire",
    "error_to_wire",
    "to_plain",
]

PAGE_BYTES: Final = 256 << 10
"""What a page of ``list`` may take, so that a reply stays far below ``limits.MAX_FRAME_BYTES``."""

FRAME_SECONDS: Final = 10.0
"""How long the rest of a frame may take once its first byte is there, and the first frame of a connection."""

ROLES: Final = ("client", "worker")
"""What a process is to its bus; a worker is ended with the bus when the owner of an embedded bus is gone."""

# The table --------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What one request holds and what its reply does: every field with the types that it may have."""

    fields: Mapping[str, tuple[type, ...]]
    reply: Mapping[str, tuple[type, ...]]
    descriptors: int = 0
    reply_descriptors: int = 0


_NONE: Final = type(None)
_Fields = Mapping[str, tuple[type, ...]]
_CHANNEL: Final[_Fields] = {"name": (str,)}
_OPEN: Final[_Fields] = {"name": (str,), "settings": (dict, _NONE), "create": (bool,)}
_OPENED: Final[_Fields] = {"settings": (dict,), "identity": (bytes,), "made": (bool,)}

REQUESTS: Final[Mapping[str, Shape]] = {
    # Who I am; the descriptor is my own pidfd. The kernel vouches for it, not these words.
    "hello": Shape(
        {"role": (str,), "pid": (int,), "command": (str,)},
        {"bus": (str,), "pid": (int,), "embedded": (bool,), "instance": (bytes,)},
        descriptors=1,
    ),
    # Find a channel, or make it, without taking part: whoever only passes it on needs no memory.
    "make": Shape(_OPEN, _OPENED),
    # The same, and take part. The descriptors: control, data, eventfd.
    "open": Shape(_OPEN, _OPENED, reply_descriptors=3),
    # Give a channel back to a broker that was restarted.
    "offer": Shape(
        {"name": (str,), "settings": (dict,), "identity": (bytes,)}, {"merged": (bool,)}, descriptors=3
    ),
    # A page of the channels in the order of their names, beginning behind the name `after`.
    "list": Shape({"after": (str,)}, {"channels": (list,), "more": (bool,)}),
    # Statistics of a channel; without a name, of the broker.
    "stats": Shape({"name": (str, _NONE)}, {"stats": (dict,)}),
    "remove": Shape(_CHANNEL, {}),
    "close_channel": Shape(_CHANNEL, {}),
    "drop_group": Shape({"name": (str,), "group": (str,)}, {}),
    # Fork a worker that inherits the anonymous channels; the descriptor is the pipe that it reports to, the
    # reply's is the worker's pidfd.
    "spawn": Shape({"payload": (bytes,)}, {"pid": (int,)}, descriptors=1, reply_descriptors=1),
    # How a worker that this client's process spawned has ended; answered when it has.
    "exit_code": Shape({"pid": (int,)}, {"exit_code": (int,)}),
    # End the broker: for the owner of an embedded bus.
    "shutdown": Shape({}, {}),
}


class State(Enum):
    """Where a connection stands."""

    NEW = "new"
    READY = "ready"
    ENDING = "ending"
    BROKEN = "broken"


TRANSITIONS: Final[Mapping[State, Mapping[str, State]]] = {
    State.NEW: {"hello": State.READY},
    State.READY: {
        name: State.ENDING if name == "shutdown" else State.READY for name in REQUESTS if name != "hello"
    },
    State.ENDING: {},
    State.BROKEN: {},
}


def _next_state(state: State, request: str) -> State:
    if request not in REQUESTS:
        raise Refused(f"there is no request {request[:40]!r} in version {VERSION} of the control protocol")
    following = TRANSITIONS[state].get(request)
    if following is None:
        hint = "; hello comes first" if state is State.NEW else ""
        raise Refused(f"the request {request!r} is not allowed on a connection that is {state.value}{hint}")
    return following


def _check_fields(
    what: str, found: Mapping[str, object], wanted: Mapping[str, tuple[type, ...]], came: int, announced: int
) -> None:
    for name, kinds in wanted.items():
        if name not in found:
            raise Refused(f"{what} lacks {name!r}")
        if type(found[name]) not in kinds:
            raise Refused(f"{name!r} of {what} cannot be {type(found[name]).__name__}")
    unknown = next((name for name in found if name not in wanted), None)
    if unknown is not None:
        raise Refused(f"{what} has no {unknown[:40]!r}")
    if came != announced:
        raise Refused(f"{what} travels with {announced} descriptors, and {came} came")


# The two ends -----------------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A request that the table allows: the broker answers with ``reply`` or ``refuse`` and its id."""

    id: int
    name: str
    fields: dict[str, object]
    descriptors: tuple[int, ...]


class ServerConnection:
    """The broker's end of one connection."""

    def __init__(self) -> None:
        self.state = State.NEW
        self._decoder = FrameDecoder()
        self._last_id = 0

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete: its sender is expected to finish it soon."""
        return self._decoder.mid_frame

    def receive(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Takes what one receive brought."""
        self._decoder.feed(data, descriptors)

    def next_request(self) -> Request | None:
        """The next request, or None until more has been received.

        Raises:
            Refused: the client broke the protocol. Send ``refuse(0, error)`` and close.
        """
        if self.state is State.BROKEN:
            return None
        frame: Frame | None = None
        try:
            frame = self._decoder.next_frame()
            if frame is None:
                return None
            body = frame.body
            name, request_id = body.pop("request", None), body.pop("id", None)
            if not isinstance(name, str) or type(request_id) is not int or request_id != self._last_id + 1:
                raise Refused("a request has a name and the next id, and this frame has not")
            following = _next_state(self.state, name)
            shape = REQUESTS[name]
            came = len(frame.descriptors)
            _check_fields(f"the request {name!r}", body, shape.fields, came, shape.descriptors)
        except Refused:
            self.state = State.BROKEN
            if frame is not None:
                self._decoder.feed(b"", frame.descriptors)
            raise
        self.state = following
        self._last_id = request_id
        return Request(request_id, name, body, frame.descriptors)

    def reply(self, request: Request, fields: Mapping[str, object]) -> bytes:
        """The frame that grants a request; the table says how many descriptors go with it."""
        shape = REQUESTS[request.name]
        _check_fields(f"the reply to {request.name!r}", fields, shape.reply, 0, 0)
        return encode_frame({**fields, "reply": request.id}, shape.reply_descriptors)

    def refuse(self, request_id: int, error: ShmbusError) -> bytes:
        """The frame that answers a request with an error; id 0 refuses the whole connection."""
        return encode_frame({"reply": request_id, "error": error_to_wire(error)})

    def take_descriptors(self) -> list[int]:
        """The descriptors that no request was handed out with. They are the caller's now."""
        return self._decoder.take_descriptors()


class Reply(NamedTuple):
    """The answer to a request: its fields and descriptors, or an error."""

    id: int
    request: str
    fields: dict[str, object]
    descriptors: tuple[int, ...]
    error: ShmbusError | None


class ClientConnection:
    """The client's end of one connection."""

    def __init__(self) -> None:
        self.state = State.NEW
        self._decoder = FrameDecoder()
        self._last_id = 0
        self._waiting: deque[tuple[int, str]] = deque()

    @property
    def waiting(self) -> int:
        """How many requests have no reply yet."""
        return len(self._waiting)

    def request(self, name: str, fields: Mapping[str, object]) -> tuple[int, bytes]:
        """The id and the frame of a request; the table says how many descriptors go with it.

        Raises:
            Refused: the table does not allow it now, or not with these fields, or it is too long. Nothing has
                changed: the connection goes on.
        """
        following = _next_state(self.state, name)
        shape = REQUESTS[name]
        _check_fields(f"the request {name!r}", fields, shape.fields, 0, 0)
        request_id = self._last_id + 1
        frame = encode_frame({**fields, "request": name, "id": request_id}, shape.descriptors)
        self.state = following
        self._last_id = request_id
        self._waiting.append((request_id, name))
        return request_id, frame

    def receive(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Takes what one receive brought."""
        self._decoder.feed(data, descriptors)

    def next_reply(self) -> Reply | None:
        """The next reply, or None until more has been received.

        Raises:
            Refused: the broker refused the connection as a whole, or what came is no reply. Close.
        """
        if self.state is State.BROKEN:
            return None
        frame: Frame | None = None
        try:
            frame = self._decoder.next_frame()
            if frame is None:
                return None
            return self._read_reply(frame)
        except ShmbusError:
            self.state = State.BROKEN
            if frame is not None:
                self._decoder.feed(b"", frame.descriptors)
            raise

    def _read_reply(self, frame: Frame) -> Reply:
        body = dict(frame.body)
        reply_id, wire = body.pop("reply", None), body.pop("error", None)
        if reply_id == 0 and wire is not None:
            raise error_from_wire(wire)
        if not self._waiting or reply_id != self._waiting[0][0]:
            raise Refused("a reply came that answers no request")
        request_id, name = self._waiting[0]
        shape = REQUESTS[name]
        error = None if wire is None else error_from_wire(wire)
        if error is None:
            _check_fields(
                f"the reply to {name!r}", body, shape.reply, len(frame.descriptors), shape.reply_descriptors
            )
        else:
            _check_fields(f"the refusal of {name!r}", body, {}, len(frame.descriptors), 0)
        self._waiting.popleft()
        return Reply(request_id, name, body, frame.descriptors, error)

    def take_descriptors(self) -> list[int]:
        """The descriptors that no reply was handed out with. They are the caller's now."""
        return self._decoder.take_descriptors()


# Errors and tables on the wire ------------------------------------------------------------------------------


def error_to_wire(error: BaseException) -> dict[str, object]:
    """An error as plain values. What is no :class:`ShmbusError` arrives as one, with its type in the text."""
    if not isinstance(error, ShmbusError):
        return {"type": "ShmbusError", "text": f"{type(error).__name__}: {error}"[:2000], "details": {}}
    details = {name: value for name, value in vars(error).items() if type(value) in (_NONE, bool, int, str)}
    return {"type": type(error).__name__, "text": str(error)[:10_000], "details": details}


def error_from_wire(wire: object) -> ShmbusError:
    """The error that another process sent; never anything else than a :class:`ShmbusError`."""
    if not isinstance(wire, dict):
        return ShmbusError("the broker sent an error that makes no sense")
    name, details = wire.get("type"), wire.get("details")
    kind: type[ShmbusError] = getattr(errors, str(name)) if name in errors.__all__ else ShmbusError
    text = str(wire.get("text"))
    try:
        return kind(text, **details) if isinstance(details, dict) else kind(text)
    except TypeError:  # details that this version does not know
        return kind(text)


def to_plain(value: object) -> object:
    """A value as the protocol can carry it: enums become their value, tuples lists, the unknown its text."""
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, bool) or value is None or isinstance(value, (float, str, bytes)):
        return value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {name: to_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    return str(value)
