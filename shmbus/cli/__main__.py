"""``python -m shmbus.cli``: the command ``shmbus``."""

from shmbus.cli import main

raise SystemExit(main())
