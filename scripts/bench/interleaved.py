"""Times of several calls that take turns, so that whatever else the machine does falls on all of them alike."""

import time
from collections.abc import Callable


def milliseconds(
    rounds: int, *calls: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> list[list[float]]:
    """Milliseconds of each call, round by round; each turn is warmed up by a call that isn't counted."""
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, spent, strict=True):
            call()
            started = clock()
            call()
            times.append(1e3 * (clock() - started))
    return spent
