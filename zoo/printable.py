"""What others wrote, on its way to a terminal, a log or a card: nothing of it but what can be seen.

A name, a figure or an error of a file or an endpoint may hold what a terminal obeys (ESC, CSI, OSC), what turns the
order of a line round (bidi), what has no width, or a line's end. Here white space becomes a space, and whatever else
isn't printable the escape that Python writes for it. Errors, logs, tables and cards pass through this file.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

MAX_MESSAGE = 400  # characters of an error: where two paths of a cache and the advice have room
MAX_LINE = 2_000  # characters of a line that tells several, or of a table's cell
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def printable(text: str, most: int | None = MAX_MESSAGE) -> str:
    r"""A text on one line, without what is obeyed or unseen; a long one is cut in the middle.

    Args:
        text: anybody's.
        most: characters that are left; None cuts nothing.

    >>> print(printable("agrees\x1b[1A\u202e\nand more"))
    agrees\x1b[1A\u202e and more
    """
    text = _cut(text, most)  # first, or megabytes would be cleaned
    if not (text.isascii() and text.isprintable()):
        text = _cut("".join(map(_seen, text)), most)
    return text


def _seen(character: str) -> str:
    if character.isspace():
        return " "
    if character.isprintable() and not _BLANK.match(character):
        return character
    return character.encode("unicode_escape").decode()


def _cut(text: str, most: int | None) -> str:
    if most is None or len(text) <= most:
        return text
    end = most // 3  # where the advice stands
    return f"{text[: most - end - 3]} … {text[-end:]}"


def logger(name: str) -> logging.Logger:
    """A module's log, of printable lines."""
    log = logging.getLogger(name)  # noqa: TID251  # this is the place
    log.addFilter(_of_printable_lines)
    return log


@contextmanager
def told() -> Iterator[None]:
    """Let what the package logs be seen on stderr as long as the context is open, where nobody configured logging."""
    log = logging.getLogger("zoo")  # noqa: TID251  # this is the place
    if log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _of_printable_lines(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage(), MAX_LINE), ()
    return True
