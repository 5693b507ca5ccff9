"""Where a message or a frame goes wrong: the slow walks that follow a fast failure.

The packer says that it met a set, and not where; the unpacker says that a frame is no msgpack, and not at
which byte. Neither walk runs unless something has failed, neither recurses (what failed may be too deep or
contain itself), and each visits a part once, however often a message refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from shmbus import limits
from shmbus.errors import EncodeError

_SHOWN_CHARACTERS: Final = 60
_SHOWN_STEPS: Final = 8
_LOCATE_ELEMENTS: Final = 200_000


class _Step(NamedTuple):
    """One step from a container into a part: ``[3]``, ``["a"]`` or ``.field``."""

    label: object
    attribute: bool = False

    def __str__(self) -> str:
        if self.attribute:
            return f".{self.label}"
        try:
            text = repr(self.label)
        except Exception:  # an int of more digits than Python prints, or somebody's own
            text = f"<{type(self.label).__name__}>"
        if isinstance(self.label, str) and self.label.isprintable() and not set('"\\') & set(self.label):
            text = f'"{self.label}"'
        return f"[{text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + '...'}]"


def _path(steps: list[_Step]) -> str:
    if len(steps) <= 2 * _SHOWN_STEPS:
        return "msg" + "".join(map(str, steps))
    first, last = steps[:_SHOWN_STEPS], steps[-_SHOWN_STEPS:]
    return "msg" + "".join(map(str, first)) + " … " + "".join(map(str, last))


def type_name(part: object) -> str:
    """The type as its user would write it: ``set``, ``decimal.Decimal``."""
    kind = type(part)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def encode_error(steps: list[_Step], part: object, reason: str, *, key: bool = False) -> EncodeError:
    """The error about one part: path, type, what is wrong with it and how to mend it."""
    path, name = _path(steps), type_name(part)
    return EncodeError(f"{path}: {name}{' as a key' if key else ''}: {reason}", path=path, type_name=name)


def find_fault(
    message: object, judge: Callable[[object], str | None], judge_key: Callable[[object], str | None]
) -> EncodeError | None:
    """The first part of a message that a codec cannot encode, in the order in which it would be packed.

    Args:
        message: what was to be sent.
        judge: says of a part that is no list, tuple or dict what is wrong with it, or None.
        judge_key: says it of a key.
    """
    steps: list[_Step] = []
    levels: list[Iterator[tuple[_Step, object]]] = [iter([(_Step(""), message)])]
    open_ids: list[int] = [0]
    done: set[int] = set()
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
            done.add(open_ids.pop())
            if steps:
                steps.pop()
            continue
        step, part = found
        here = [*steps, step] if len(levels) > 1 else []
        if isinstance(step.label, _Key):
            reason = judge_key(part)
            if reason is not None:
                return encode_error([*steps, _Step(part)], part, reason, key=True)
            continue
        if not isinstance(part, (list, tuple, dict)):
            reason = judge(part)
            if reason is not None:
                return encode_error(here, part, reason)
            continue
        if id(part) in open_ids:
            return encode_error(here, part, "it contains itself; send a copy that does not")
        if id(part) in done:
            continue
        if len(levels) > limits.MESSAGE_DEPTH:
            return encode_error(
                here,
                part,
                f"it lies more than {limits.MESSAGE_DEPTH} deep (MESSAGE_DEPTH); flatten the message",
            )
        if len(levels) > 1:
            steps.append(step)
        levels.append(_parts(part))
        open_ids.append(id(part))
    return None


class _Key:
    """Marks a step that looks at a key itself."""


def _parts(container: Any) -> Iterator[tuple[_Step, object]]:
    if isinstance(container, dict):
        for key, value in container.items():
            yield _Step(_Key()), key
            yield _Step(key), value
    else:
        for index, value in enumerate(container):
            yield _Step(index), value


def find_fault_by_trial(message: object, encode: Callable[[object], object]) -> EncodeError:
    """The smallest part of a message that `encode` refuses: for codecs whose rules are not ours to know.

    Args:
        message: what was to be sent, and what `encode` raises an exception for.
        encode: the codec's own.
    """
    steps: list[_Step] = []
    part, failure = message, _attempt(message, encode)
    seen: set[int] = set()
    while len(seen) < limits.MESSAGE_DEPTH:
        seen.add(id(part))
        for step, inner in _inside(part):
            if id(inner) in seen:
                continue
            inner_failure = _attempt(inner, encode)
            if inner_failure is not None:
                steps.append(step)
                part, failure = inner, inner_failure
                break
        else:
            break
    return encode_error(steps, part, f"{failure}" if str(failure) else type(failure).__name__)


def _attempt(part: object, encode: Callable[[object], object]) -> Exception | None:
    try:
        encode(part)
    except Exception as failure:
        return failure
    return None


def _inside(part: object) -> Iterator[tuple[_Step, object]]:
    if isinstance(part, (dict, list, tuple)):
        yield from ((step, inner) for step, inner in _parts(part) if not isinstance(step.label, _Key))
    elif not isinstance(part, type):
        fields = getattr(part, "__struct_fields__", None) or getattr(part, "__dict__", None) or ()
        for name in fields:
            yield _Step(name, attribute=True), getattr(part, name, None)


class FrameFault(NamedTuple):
    """What is wrong with a frame, and where."""

    offset: int
    reason: str


def locate_fault(frame: bytes) -> FrameFault | None:
    """The first byte at which a frame stops being msgpack, or None when it is not found.

    Not found are faults inside ext elements, and those beyond the first few hundred thousand elements: a
    hostile frame shall not buy a long walk.
    """
    at, size = 0, len(frame)
    # One [elements left, is a map] for each open container; in a map an even number left means that a key is
    # next.
    levels: list[list[int]] = [[1, False]]
    for _ in range(_LOCATE_ELEMENTS):
        while levels and not levels[-1][0]:
            levels.pop()
        if not levels:
            return FrameFault(at, f"{size - at} more bytes follow a whole message") if at < size else None
        if at >= size:
            return FrameFault(size, "it ends too early")
        left, is_map = levels[-1]
        levels[-1][0] -= 1
        element = _read_element(frame, at)
        if isinstance(element, FrameFault):
            return element
        body, stop, children, kind = element
        if stop > size:
            return FrameFault(
                at, f"a {kind} of {stop - body} bytes begins there, and {max(size - body, 0)} follow"
            )
        if is_map and left % 2 == 0 and kind in ("list", "map"):
            return FrameFault(at, f"a key of a map is a {kind}")
        if kind == "str":
            try:
                frame[body:stop].decode()
            except UnicodeDecodeError as error:
                return FrameFault(body + error.start, "a str is not UTF-8")
        if children > size - stop:
            return FrameFault(
                at, f"a {kind} of {children} elements begins there, and {size - stop} bytes follow"
            )
        if kind in ("list", "map"):
            if len(levels) > limits.MESSAGE_DEPTH:
                return FrameFault(at, f"it nests more than {limits.MESSAGE_DEPTH} deep (MESSAGE_DEPTH)")
            levels.append([children, kind == "map"])
        at = stop
    return None


_Element = tuple[
    int, int, int, str
]  # where its body begins and ends, how many elements it contains, its kind
_FIXED_SIZES: Final = {
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
}
_COUNTED: Final = {  # first byte: bytes of the length, bytes after it that are no body, kind
    **{0xC4 + i: (1 << i, 0, "bin") for i in range(3)},
    **{0xC7 + i: (1 << i, 1, "ext") for i in range(3)},
    **{0xD9 + i: (1 << i, 0, "str") for i in range(3)},
    **{0xDC + i: (2 << i, 0, "list") for i in range(2)},
    **{0xDE + i: (2 << i, 0, "map") for i in range(2)},
}


def _read_element(frame: bytes, at: int) -> _Element | FrameFault:
    first = frame[at]
    if first == 0xC1:
        return FrameFault(at, "no msgpack begins with 0xc1")
    if first in _FIXED_SIZES:
        return at + 1, at + 1 + _FIXED_SIZES[first], 0, "number"
    if 0xD4 <= first <= 0xD8:
        return at + 2, at + 2 + (1 << first - 0xD4), 0, "ext"
    if first in _COUNTED:
        width, more, kind = _COUNTED[first]
        body = at + 1 + width + more
        if body > len(frame):
            return FrameFault(at, f"a {kind} begins there, and its length is cut off")
        count = int.from_bytes(frame[at + 1 : at + 1 + width], "big")
    elif 0x80 <= first <= 0x8F:
        body, count, kind = at + 1, first & 15, "map"
    elif 0x90 <= first <= 0x9F:
        body, count, kind = at + 1, first & 15, "list"
    elif 0xA0 <= first <= 0xBF:
        body, count, kind = at + 1, first & 31, "str"
    else:
        return at + 1, at + 1, 0, "number"
    if kind == "list":
        return body, body, count, kind
    if kind == "map":
        return body, body, 2 * count, kind
    return body, body + count, 0, kind
