"""Every error of shmbus, and whose fault each one is.

All of them are :class:`ShmbusError`. An error takes one message and keyword-only details; the details are
plain attributes, so an error survives a pickle and arrives from a worker with everything that it knew.

| who has to act | errors |
| --- | --- |
| nobody: this is the clean end | ``EndOfChannel`` |
| this call: it asked for something impossible | ``Closed``, ``Refused``, ``TooLarge``, ``EncodeError`` |
| this call, later: try again | ``WouldBlock``, ``TimedOut`` |
| another process | ``PeerDied``, ``WorkerFailed``, ``NoBroker``, ``DecodeError``, ``Corrupt`` |
| the machine | ``NoSpace`` |
"""

# The names are words that people catch, like StopIteration; "Closed" needs no "Error" to be understood.
# ruff: noqa: N818

from __future__ import annotations

__all__ = [
    "Closed",
    "Corrupt",
    "DecodeError",
    "EncodeError",
    "EndOfChannel",
    "NoBroker",
    "NoSpace",
    "PeerDied",
    "Refused",
    "ShmbusError",
    "TimedOut",
    "TooLarge",
    "WorkerFailed",
    "WouldBlock",
]


class ShmbusError(Exception):
    """The base of every error that shmbus raises on purpose."""


class Closed(ShmbusError):
    """You closed it: this endpoint, channel, bus or region was closed by its own user before this call.

    It is raised too in a forked child that uses an endpoint which its parent had attached: an attached
    endpoint belongs to its process. Make or attach the endpoint where it is used.
    """


class EndOfChannel(ShmbusError):
    """The clean end: the group has had every record, and nothing more can be sent.

    Nobody's fault. Iterating over a consumer turns it into the end of the loop.
    """


class PeerDied(ShmbusError):
    """Another process died, proved dead, and this call cannot be completed without it.

    Attributes:
        pid: the dead process, or None when it is not known.
    """

    def __init__(self, message: str = "", *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class WouldBlock(ShmbusError):
    """Nothing is wrong: there is no record to take, or no room to send, without waiting.

    Raised by the ``try_`` calls, which never wait. Do something else and try again, or use the call that
    waits.
    """


class TimedOut(ShmbusError, TimeoutError):
    """The wait ended at the deadline that the call was given; the call has changed nothing.

    It is a ``TimeoutError``, so code written for sockets or futures catches it. Call again to go on waiting.
    """


class Corrupt(ShmbusError):
    """Shared memory says something that cannot be true, and says it still when read again.

    Some process wrote where it had no business: a fault in native code, a hostile participant, or a file
    damaged on disk. The channel is not used any further; make a new one. It is never raised for a race seen
    halfway.
    """


class Refused(ShmbusError):
    """The request breaks a rule, and would break it again: a name, a setting, a limit or a permission.

    The message names the rule and the nearest request that would be granted.

    Attributes:
        setting: the keyword at fault ("capacity", "groups", …), or None when it is not a setting.
    """

    def __init__(self, message: str = "", *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class TooLarge(ShmbusError):
    """The record can never fit into this channel, however long the call waits.

    Make the channel with a larger capacity, or send the data in pieces.

    Attributes:
        size_bytes: the size of the record, or None when it is not known.
        limit_bytes: the largest possible here, or None when it is not known.
    """

    def __init__(
        self, message: str = "", *, size_bytes: int | None = None, limit_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class NoSpace(ShmbusError):
    """The machine cannot reserve the memory or the disk space of a new region.

    Raised when the region is made: space is reserved before it is mapped, so that it cannot run out later.
    Ask for a smaller capacity, free some, or choose another backing.

    Attributes:
        needed_bytes: what was asked for, or None when it is not known.
    """

    def __init__(self, message: str = "", *, needed_bytes: int | None = None) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class NoBroker(ShmbusError):
    """Nobody answers at the socket of this bus: its broker was not started, or has ended.

    Attributes:
        path: the socket that was tried, or None when it is not known.
    """

    def __init__(self, message: str = "", *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class EncodeError(ShmbusError):
    """The sender's fault: this object has no representation in the channel's codec. Nothing was sent.

    The message holds the path to the part at fault, and how to mend it.

    Attributes:
        path: the way to the part at fault from the object sent, as an expression: ``msg["a"][3]``.
        type_name: the type of that part: ``set``.
    """

    def __init__(self, message: str = "", *, path: str = "msg", type_name: str = "object") -> None:
        super().__init__(message)
        self.path = path
        self.type_name = type_name


class DecodeError(ShmbusError):
    """The record was taken, but its bytes are no frame of the channel's codec.

    Its producer used another codec, or sent bytes of its own making. The record is gone for this group; the
    next receive goes on with the one after it. ``recv_bytes`` takes any record as it is.

    Attributes:
        offset: how many bytes into the frame the trouble begins, or None when it is not known.
    """

    def __init__(self, message: str = "", *, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


class WorkerFailed(ShmbusError):
    """A worker process ended with an error; the message ends with the worker's own traceback.

    Attributes:
        name: the name of the worker, or None when it is not known.
        pid: its process id, or None when it is not known.
        exit_code: how it ended: an exit status, or minus the signal that killed it, or None when it is not
            known.
        traceback_text: the traceback as the worker printed it, or None when it left none (it was killed).
    """

    def __init__(
        self,
        message: str = "",
        *,
        name: str | None = None,
        pid: int | None = None,
        exit_code: int | None = None,
        traceback_text: str | None = None,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.pid = pid
        self.exit_code = exit_code
        self.traceback_text = traceback_text
