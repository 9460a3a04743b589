"""Ctrl-C where it may not act as ever: in a step of a training, and in libraries that catch it and go on."""

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

    with _handled_by(note):
        yield
    if asked:
        keep()
        raise KeyboardInterrupt


@contextlib.contextmanager
def acts_at_last() -> Iterator[None]:
    """Let Ctrl-C act at once, and once more when the block ends if a library within it caught it and went on.

    Raises:
        KeyboardInterrupt: it was pressed.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    with _handled_by(note):
        yield
    if asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle Ctrl-C in the block, unless somebody else does."""
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
