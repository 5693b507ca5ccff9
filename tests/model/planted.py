"""What a mistake planted in the ring core is: exact replacements in one file of shmbus/_native."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[2] / "shmbus" / "_native"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake: where, what becomes what, which scenario of ring_scenarios.c finds it, why it is one."""

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    caught_by: str
    why: str

    def source(self) -> str:
        """The file with the mistake in it.

        A text that is to be replaced must occur exactly once, white space apart, so that a mutant cannot rot
        unnoticed when the core changes.

        Raises:
            ValueError: It occurs more often, or not at all.
        """
        text = (NATIVE / self.file).read_text()
        for old, new in self.edits:
            pattern = r"\s+".join(re.escape(word) for word in old.split())
            found = re.findall(pattern, text)
            if len(found) != 1:
                raise ValueError(f"{self.name}: {self.file} holds this {len(found)} times, not once: {old!r}")
            text = text.replace(found[0], new)
        return text
