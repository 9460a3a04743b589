"""What the server says of itself, on stderr: what strangers wrote is in it only as printable characters.

A record's first line stands at the margin, all others are indented: no text within one can pass for a record.
"""

import logging
from functools import lru_cache
from typing import Any

from zoo.printable import MAX_LINE, logger, printable

log = logger("zoo.server")


class Line(logging.Formatter):
    """A record with nothing in it that a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; logging's part of the protocol."""
        lines = super().format(record).rstrip("\n").split("\n")
        return "\n    ".join(printable(line, MAX_LINE) for line in lines)


LOG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": Line}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "zoo.server": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
        # uvicorn warns of every request that can't be read: anyone could fill the disk with it
        "uvicorn": {"level": "ERROR", "handlers": ["stderr"], "propagate": False},
        "asyncio": {"level": "ERROR", "handlers": ["stderr"], "propagate": False},
    },
}


@lru_cache(maxsize=4096)
def say_once(message: str) -> None:
    """Say something that every request would find again."""
    log.warning(message)
