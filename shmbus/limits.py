"""Every limit of shmbus, in one place.

A request beyond a limit is refused with an error that names the limit. The units are the last word of the
name; a constant without a unit counts things.
"""

from __future__ import annotations

import mmap
from typing import Final

# The ring ---------------------------------------------------------------------------------------------------

PAGE_BYTES: Final[int] = mmap.PAGESIZE
"""The page of this machine. Capacities are multiples of it."""

MIN_CAPACITY_BYTES: Final[int] = PAGE_BYTES
"""The smallest capacity of a channel: one page."""

MAX_CAPACITY_BYTES: Final[int] = 1 << 40
"""The largest capacity of a channel, 1 TiB: mapped twice, it still leaves room in a 47-bit address space."""

DEFAULT_CAPACITY_BYTES: Final[int] = 64 << 20
"""The capacity of a channel that nobody chose one for."""

MAX_PARTICIPANTS: Final[int] = 256
"""Attached endpoints of one channel, of all processes together. A claim word names its owner in so many
slots."""

MAX_GROUPS: Final[int] = 32
"""Named and private groups of one channel. Producers scan every cursor, so this bounds that scan."""

MAX_LEASES: Final[int] = 128
"""Records of one channel that consumers can hold at the same time. Producers scan every lease."""

# Names ------------------------------------------------------------------------------------------------------

CHANNEL_NAME_BYTES: Final[int] = 128
"""The longest name of a channel in UTF-8. It is a file name in the broker's folder, with an ending added."""

GROUP_NAME_BYTES: Final[int] = 48
"""The longest name of a group in UTF-8: the room for it in the group's slot in shared memory."""

BUS_NAME_BYTES: Final[int] = 64
"""The longest name of a bus in UTF-8. It becomes part of a socket path, which has a limit of its own."""

SOCKET_PATH_BYTES: Final[int] = 107
"""The longest path of a Unix socket: ``sun_path`` holds 108 bytes, the last of them zero (man 7 unix)."""

DIRECTORY_PATH_BYTES: Final[int] = 3072
"""The longest path of a folder for ``backing="file"``: below PATH_MAX, with room for the file's own name."""

# The broker and the control protocol ------------------------------------------------------------------------

MAX_CHANNELS: Final[int] = 1024
"""Channels of one bus. Each costs its broker three descriptors."""

MAX_CLIENTS: Final[int] = 1024
"""Connections to one broker at the same time. Each costs it a socket and a pidfd."""

MAX_FRAME_BYTES: Final[int] = 1 << 20
"""The body of one frame of the control protocol. Data never travels that way, so a larger one is no
request."""

MAX_CONTROL_DEPTH: Final[int] = 16
"""Lists and dictionaries inside each other in a frame of the control protocol."""

MAX_FRAME_DESCRIPTORS: Final[int] = 8
"""Descriptors that travel with one frame of the control protocol; three are a channel."""

# Codecs -----------------------------------------------------------------------------------------------------

MESSAGE_DEPTH: Final[int] = 1024
"""Lists and dictionaries inside each other in a message. msgpack itself writes and reads no more."""

OUT_OF_BAND_BYTES: Final[int] = 4096
"""A buffer of this size or more is written to the ring as it lies, and is not copied through the packer."""

MAX_BUFFER_BYTES: Final[int] = (1 << 32) - 1
"""The longest bytes, str or array inside a msgpack frame: msgpack counts in 32 bits."""

MAX_ARRAY_DIMENSIONS: Final[int] = 64
"""The dimensions of an array in a frame: what numpy 2 can hold."""

MAX_DTYPE_DEPTH: Final[int] = 8
"""Structured dtypes inside each other in an array's description."""

# Delivery ---------------------------------------------------------------------------------------------------

MAX_DELIVERIES: Final[int] = 5
"""How often a record is redelivered after the deaths of those who held it, before it is dropped and counted:
a record that kills every worker must not kill the service."""

PARKING_BYTES: Final[int] = 64 << 20
"""The largest record that ``ack="done"`` keeps outside the ring. Larger ones stay in it until done."""

SPIN_NS: Final[int] = 20_000
"""The longest that a wait spins before it sleeps. Waits learn; this is the bound."""
