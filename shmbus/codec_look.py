"""Looking through a message for large buffers, to set them aside before it is packed.

A message is lists and dictionaries, mostly of plain values; whether a container holds nothing else is one
call in C. Looking never changes the message: containers on the way to a buffer are copied, all others stay as
they are.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from shmbus import limits
from shmbus.codec_parts import Buffer, flat

PLAIN: Final = frozenset({type(None), bool, int, float, str, datetime})
only_plain: Final = PLAIN.issuperset

_LOOK_DEPTH: Final = 32  # no deeper: messages keep their buffers near the top


class SetAside:
    """A large buffer, in the place of itself: what looking leaves behind for the hook to find."""

    __slots__ = ("head", "payload")

    def __init__(self, payload: Buffer, head: bytes | None = None) -> None:
        self.payload = payload
        self.head = head  # an array's description; None: the payload is plain bytes


class Look:
    """A search for large buffers, which stops when its budget is spent.

    Attributes:
        budget: how many more parts it may look at.
        found_bytes: how many bytes it has set aside.
    """

    __slots__ = ("budget", "found_bytes")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.found_bytes = 0

    def through(self, part: Any, depth: int = 0) -> Any:
        """The part with its large buffers set aside: itself if it has none, else copies of the containers."""
        kind = type(part)
        if kind is bytes or kind is bytearray or kind is memoryview:
            return self._set_aside(part)
        if not (kind is dict or kind is list or kind is tuple) or depth == _LOOK_DEPTH:
            return part
        self.budget -= 1 + len(part) // 8
        if self.budget <= 0:
            return part
        copy: Any = None
        if kind is dict:
            if only_plain(map(type, part.values())):
                return part
            for key, value in part.items():
                if type(value) not in PLAIN and (new := self._inner(value, depth)) is not value:
                    copy = dict(part) if copy is None else copy
                    copy[key] = new
                if self.budget <= 0:
                    break
        elif not only_plain(map(type, part)):
            for place, value in enumerate(part):
                if type(value) not in PLAIN and (new := self._inner(value, depth)) is not value:
                    copy = list(part) if copy is None else copy
                    copy[place] = new
                if self.budget <= 0:
                    break
        return part if copy is None else copy

    def _inner(self, value: Any, depth: int) -> Any:
        self.budget -= 1
        return self.through(value, depth + 1)

    def _set_aside(self, buffer: Buffer) -> Any:
        scattered = isinstance(buffer, memoryview) and not buffer.c_contiguous
        size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        if not scattered and not limits.OUT_OF_BAND_BYTES <= size <= limits.MAX_BUFFER_BYTES:
            return buffer
        self.found_bytes += size
        # The packer does not take a memoryview with gaps, however small.
        return flat(buffer) if size < limits.OUT_OF_BAND_BYTES else SetAside(flat(buffer))
