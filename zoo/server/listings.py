"""Listings: what they look for and sort by, a row for each repository, kept in memory in order.

A page costs a page: what the server holds is read once, and again when `changes` says that it is another (nobody else
writes there). Plain folders, which anybody may change, are looked through whenever a listing begins; its further pages
go by what was seen then.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import RepositoryError
from zoo.server import info, plain, store
from zoo.server.errors import RevisionNotFound
from zoo.server.log import say_once
from zoo.server.names import RepoId

Json = dict[str, Any]
_one = threading.Lock()  # reads at a time


@dataclass
class _Known:
    """What is known of the repositories of a kind.

    Args:
        unread: ids of those that may be others by now, or couldn't be read.
        stored: id → row, of what the server holds.
        plain: the same, of plain folders.
        ordered: what is sorted by → all rows in that order.
    """

    unread: set[str] = field(default_factory=set)
    stored: dict[str, Json] = field(default_factory=dict)
    plain: dict[str, Json] = field(default_factory=dict)
    ordered: dict[str, list[Json]] = field(default_factory=dict)


_known: dict[tuple[Path, str], _Known] = {}


def begin(root: Path) -> None:
    """Forget everything of a folder, as when a server of it begins."""
    for key in [key for key in _known if key[0] == root]:
        del _known[key]


def forget(root: Path, name: RepoId) -> None:
    """Say that a repository is another now, came, or went; to be called after it did."""
    if known := _known.get((root, name.kind)):
        known.unread.add(name.id)


def ordered(root: Path, kind: str, sort: str, begins: bool = True) -> list[Json]:
    """All repositories of a kind in order; nobody may change the rows.

    Args:
        root: the server's own folder.
        kind: of the repositories.
        sort: a key of the rows; those with most of it come first, and those with as much by their ids.
        begins: whether a listing begins.
    """
    with _one:
        known = _known.get((root, kind))
        if known is None:
            known = _known[root, kind] = _Known()
            known.unread |= store.names(root, kind)  # after it is known that somebody wants to hear of changes
            begins = True
        if begins and kind == "model":
            now = _rows(root, kind, set(plain.repository_names(root.parent)) - known.stored.keys())
            if now != known.plain:
                known.plain = now
                known.ordered.clear()
        if known.unread:
            _read(root, kind, known)
        if sort not in known.ordered:
            rows = sorted({**known.plain, **known.stored}.values(), key=lambda row: str(row["id"]))
            known.ordered[sort] = sorted(rows, key=lambda row: row[sort], reverse=True)
        return known.ordered[sort]


def _read(root: Path, kind: str, known: _Known) -> None:
    """Read what may be another; what can't be read is looked at again the next time, as somebody may mend it."""
    asked = set()
    while known.unread:
        asked.add(known.unread.pop())  # before it is read: it may change meanwhile
    now = _rows(root, kind, asked)
    for name in asked:
        known.stored.pop(name, None)
    known.stored.update(now)
    known.unread |= {name for name in asked - now.keys() if store.is_stored(root, RepoId(kind, name))}
    known.ordered.clear()


def _rows(root: Path, kind: str, names: Iterable[str]) -> dict[str, Json]:
    """The rows of some repositories; one that is damaged is left out."""
    rows = {}
    for repository in store.named(root, kind, names):
        try:
            rows[repository.name.id] = info.listed(root, repository)
        except (RevisionNotFound, RepositoryError) as error:  # it went away meanwhile, or is damaged
            say_once(f"{kind} {repository.name.id} is left out: {error}")
    return rows
