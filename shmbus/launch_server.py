"""Loaded by the fork server of multiprocessing when it starts, for the effect of being imported: SIGINT.

A fork server ignores SIGINT, but not from its first moment: a Ctrl-C while it is still importing its modules
would end it with a traceback, and the program that is starting it with another. So ``launch.py`` starts it
with SIGINT blocked, and names this module to be preloaded. Here what came meanwhile is dropped and the signal
is unblocked, just before the server ignores it: the processes that it forks, for whomever, are as ever.
"""

import signal

__all__: list[str] = []


def _drop_and_unblock() -> None:
    if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which drops the pending
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, handler)


_drop_and_unblock()
