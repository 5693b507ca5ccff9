"""Whether there is somebody to draw for."""

from __future__ import annotations

import os
from typing import TextIO

__all__ = ["is_terminal"]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether what is written to `stream` is shown on a terminal that can move its cursor."""
    return (
        stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    )
