"""Ctrl-C in a training: it waits for the end of the step under way, when all that is held can be written."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def put_off(keep: Callable[[], None]) -> Iterator[None]:
    """Put Ctrl-C off until the block has ended, at whatever moment of it it comes; the second one acts at once.

    Where another handler than Python's own is set, or in another thread than the main one, it acts as ever.

    Args:
        keep: called where it was pressed and the block has ended without an error.

    Raises:
        KeyboardInterrupt: it was pressed, and what the block did is kept.
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
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        keep()
        raise KeyboardInterrupt
