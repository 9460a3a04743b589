"""Index: a large catalog's models as its files say them, in one file that is taken up a hundred times sooner.

    FOLDER/.zoo-index                          beside the files, or where nothing can be written there
    CACHE/catalog/<sha256 of the path>.index   in the cache
        sha256                                 of this version's catalog code and of what follows
        msgpack                                file → its state, and each of its models as bytes

A file counts as it was if its name, inode, size and both times of change are as they were, and it hadn't changed just
before the index was written: within one tick of the clock it could have changed once more. Every other file is read
again. An index that is damaged, or another version's, is none. What it says of a model is held against the same types
as what a file says, when the model is looked up.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from zoo import atomic
from zoo.catalog.entry import Entry
from zoo.errors import CatalogError, StorageError
from zoo.files import cache

NAME = ".zoo-index"
SETTLED = 2 * 10**9  # nanoseconds that the coarsest file system can't tell apart
_PLAIN = (msgspec.MsgspecError, OverflowError, RecursionError, UnicodeError, TypeError)  # what msgpack can't hold
_DIGEST = hashlib.sha256().digest_size

State = tuple[str, int, int, int, int]


class Part(Struct, array_like=True):
    """What one file says.

    Args:
        state: of the file when it was read: the folder's name, inode, size, and both times of change in nanoseconds.
        models: name → the fields of its entry, as msgpack.
    """

    state: State
    models: dict[str, msgspec.Raw]


class Entries(Mapping[str, Entry]):
    """Name → entry, made when it is looked up.

    Args:
        told: name → the entry, or its fields as msgpack.
        place: the index that these come from.
    """

    def __init__(self, told: Mapping[str, Entry | msgspec.Raw], place: Path) -> None:
        self._told = dict(told)
        self._place = place

    def __getitem__(self, name: str) -> Entry:
        told = self._told[name]
        if isinstance(told, Entry):
            return told
        try:
            entry = self._told[name] = _DECODER.decode(told)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise CatalogError(f"{self._place}: {name}: {error}; remove that file, it is made again") from None
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._told

    def __iter__(self) -> Iterator[str]:
        return iter(self._told)

    def __len__(self) -> int:
        return len(self._told)


_DECODER = msgspec.msgpack.Decoder(Entry)
_PARTS = msgspec.msgpack.Decoder(dict[str, Part])


def place(folder: Path) -> Path:
    """Where a catalog's index lies."""
    if os.access(folder, os.W_OK):
        return folder / NAME
    return cache() / "catalog" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()}.index"


def state(file: Path) -> State:
    """What tells whether a file is as it was, and what its models take from its place."""
    status = file.stat()
    return file.parent.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def taken(path: Path) -> dict[str, Part]:
    """What an index says of the files that had settled when it was written; nothing where it can't be used."""
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            written = os.fstat(file.fileno()).st_mtime_ns
            digest, data = file.read(_DIGEST), file.read()
        if _digest(data) != digest:
            return {}
        parts = _PARTS.decode(data)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeError):
        return {}
    return {name: part for name, part in parts.items() if max(part.state[-2:]) < written - SETTLED}


def keep(path: Path, parts: Mapping[str, Part]) -> None:
    """Write an index; where that can't be done, the next one to look pays for it."""
    with contextlib.suppress(StorageError, UnicodeError):  # a file's name may be no text
        data = msgspec.msgpack.encode(parts)
        with atomic.writing(path) as file:
            file.write(_digest(data))
            file.write(data)


def packed(told: Mapping[str, Any], entry: Entry) -> msgspec.Raw | None:
    """The fields of an entry as msgpack; None if another entry would come back."""
    with contextlib.suppress(*_PLAIN):
        data = msgspec.msgpack.encode(told)
        if _DECODER.decode(data) == entry:
            return msgspec.Raw(data)
    return None


def _digest(data: bytes) -> bytes:
    digest = hashlib.sha256(_code())
    digest.update(data)
    return digest.digest()


@functools.cache
def _code() -> bytes:
    """What an entry is depends on: another version may refuse what this one takes."""
    here = Path(__file__).parent
    files = (*sorted(here.glob("*.py")), here.parent / "declarations.py", here.parent / "version.py")
    return b"".join(file.read_bytes() for file in files if file.is_file())
