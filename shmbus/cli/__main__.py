"""``python -m shmbus.cli``: the command ``shmbus``, where it is not installed."""

from shmbus.cli import main

raise SystemExit(main())
