"""What the tests stand on: the check that nothing is left behind, and the watchdog that ends a hang.

Neither imports shmbus, so both work on a tree whose package does not.
"""
