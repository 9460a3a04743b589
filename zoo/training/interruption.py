"""Ctrl-C in a training: it waits for the end of the step under way, when all that is held can be written."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Put Ctrl-C off, for as long as the block lasts; the second one acts at once.

    Where another handler than Python's own is set, or in another thread than the main one, it acts as ever.

    Yields:
        A function that says whether it was pressed, upon which the block had better end.

    Raises:
        KeyboardInterrupt: it was pressed, and the block has ended.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt
