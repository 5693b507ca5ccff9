"""Print a command of README.md: the first fenced block under a heading.

    python3 .ci/readme.py "Test it"

What the README tells people to run is then the very line that is run here.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command_under(heading: str) -> str:
    """The one line in the first fenced block under `## heading`.

    Raises:
        SystemExit: The heading, the block or its one line is not there.
    """
    section = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README.read_text(), re.DOTALL | re.MULTILINE
    )
    block = section and re.search(r"^```\w*\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    lines = block[1].strip().splitlines() if block else []
    if len(lines) != 1:
        sys.exit(
            f"{README.name} must have a fenced block of one line first under '## {heading}'; found {lines}"
        )
    return lines[0]


if __name__ == "__main__":
    print(command_under(sys.argv[1]))
