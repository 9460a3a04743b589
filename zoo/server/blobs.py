"""The bytes of files, each stored once under its sha256: `blobs/ab/abcdef...`, whole or absent.

Uploads are written aside while they are hashed and take their name only when size and sha256 are what was announced.
Parts of a multipart upload wait in `parts/<sha256>/<number>` and outlive a restart.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from zoo.atomic import writing
from zoo.server.errors import BadRequest, TooLarge

CHUNK = 1 << 20  # bytes read at once


def location(root: Path, sha256: str) -> Path:
    """Where the bytes of that sha256 lie, if they are there."""
    return root / "blobs" / sha256[:2] / sha256


def put(root: Path, sha256: str, size: int, chunks: Iterable[bytes]) -> Path:
    """Store bytes that are said to have this sha256 and size.

    Raises:
        BadRequest: they have another.
        StorageError: the disk is full or refuses.
    """
    path = location(root, sha256)
    with writing(path) as file:
        digest, written = _copy(file, chunks, size, f"object {sha256}: more than the announced {size} bytes")
        if written != size:
            raise BadRequest(f"object {sha256}: expected {size} bytes, found {written}")
        if digest != sha256:
            raise BadRequest(f"object {sha256}: the bytes have sha256 {digest}")
    return path


def _copy(file: IO[bytes], chunks: Iterable[bytes], size: int, too_large: str) -> tuple[str, int]:
    """Write at most so many bytes; returns their sha256 and how many they are."""
    digest, written = hashlib.sha256(), 0
    for chunk in chunks:
        written += len(chunk)
        if written > size:
            raise TooLarge(too_large)
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest(), written


def keep(root: Path, data: bytes) -> str:
    """Store a small file's bytes; returns their sha256."""
    sha256 = hashlib.sha256(data).hexdigest()
    if not location(root, sha256).exists():
        put(root, sha256, len(data), [data])
    return sha256


def put_part(root: Path, sha256: str, number: int, size: int, chunks: Iterable[bytes]) -> str:
    """Store one part of an object; returns the part's own sha256.

    Raises:
        TooLarge: there are more bytes than a part has.
        StorageError: the disk is full or refuses.
    """
    with writing(_parts(root, sha256) / str(number)) as file:
        return _copy(file, chunks, size, f"part {number} of object {sha256}: more than {size} bytes")[0]


def join(root: Path, sha256: str, size: int, count: int) -> Path:
    """Make an object of its parts 1 to count, which are then removed.

    Raises:
        BadRequest: a part is missing, or together they aren't the announced bytes.
        StorageError: the disk is full or refuses.
    """
    parts = [_parts(root, sha256) / str(number) for number in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise BadRequest(f"object {sha256}: part {missing[0]} of {count} is missing")
    path = put(root, sha256, size, _joined(parts))
    shutil.rmtree(_parts(root, sha256), ignore_errors=True)
    return path


def _joined(parts: Iterable[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def _parts(root: Path, sha256: str) -> Path:
    return root / "parts" / sha256


def sweep(root: Path, used: set[str], age: float = 86400.0) -> None:
    """Remove what an interrupted upload left, and what no commit uses and was stored longer ago than `age` seconds."""
    before = time.time() - age  # noqa: TID251  # files have the clock's time
    for path in (root / "blobs").glob("*/*"):
        with contextlib.suppress(OSError):
            if path.name.startswith(".") or (path.name not in used and path.stat().st_mtime < before):
                path.unlink()
    for path in (root / "parts").glob("*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before:
                shutil.rmtree(path)
