"""Waiting for what is to happen, as long as that takes: a machine may be busy with other things."""

import time
from collections.abc import Callable
from typing import Any

CEILING = 300.0  # seconds that nothing takes, however busy the machine: what is not there by then will never be


def until(true: Callable[[], Any], said: Callable[[], str] = lambda: "it did not happen") -> Any:
    """What `true` gives, once that is true; fails with what is `said` where it never is."""
    ends = time.monotonic() + CEILING
    while not (found := true()):
        assert time.monotonic() < ends, said()
        time.sleep(0.005)
    return found
