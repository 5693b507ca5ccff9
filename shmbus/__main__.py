"""``python -m shmbus``: the command ``shmbus``."""

from shmbus.cli import main

raise SystemExit(main())
