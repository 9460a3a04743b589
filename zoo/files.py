"""JSON, repositories' folders and hashes on the disk."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from zoo import atomic
from zoo.errors import RepositoryError, StorageError

PICTURES = ("front.png", "widths.png", "classes.png")  # of a card
REPOSITORY = {
    *("config.json", "model.safetensors", "README.md", "results.json"),
    *("graph.json", "graph.safetensors", "model.onnx"),
    *PICTURES,
}
MAX_JSON = 8 * 2**20  # bytes; the largest plans are kilobytes, the names of 22,000 classes one megabyte
MAX_DEPTH = 32  # lists and objects within each other; another project's graphs, within each other too, have 20


def cache() -> Path:
    """The folder for what can be made again: `ZOO_CACHE`, or compressed-zoo under the user's cache."""
    own = os.environ.get("ZOO_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "compressed-zoo"


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Fill a repository's folder that appears, or takes the former one's place, when the block ends.

    Args:
        folder: where it shall lie. One that exists must be empty or a repository (hold a config.json).

    Yields:
        The folder to fill.

    Raises:
        RepositoryError: something else lies there.
        StorageError: the disk is full or refuses.
    """
    free(folder)
    with atomic.replacing(folder) as new:
        yield new


def free(folder: Path) -> None:
    """Check that a repository may be written to a folder: it isn't there, is empty, or holds a repository alone.

    Raises:
        RepositoryError: something lies there that isn't a repository's.
        StorageError: the folder can't be looked at.
    """
    with atomic.refusals(folder):
        if not folder.exists():
            return
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    foreign = sorted(names - REPOSITORY)
    if foreign or (names and "zoo" not in read_json(folder / "config.json")):
        what = foreign[0] if foreign else "config.json"
        raise RepositoryError(
            f"{folder} exists and isn't a model repository: choose another folder or remove it (found {what})"
        )


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, keys in the order given."""
    with atomic.writing(path) as file:
        file.write((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        RepositoryError: the file is missing, too large, isn't JSON (which has neither NaN nor halves of a character),
            isn't an object, or is nested too deep.
    """
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > most):
            raise RepositoryError(f"{path} isn't a file of at most {most >> 20} MB: not a model repository")
        data = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise RepositoryError(f"{path.parent} has no {path.name}: not a model repository") from None
    except OSError as error:
        raise RepositoryError(f"{path} can't be read: {error.strerror}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise RepositoryError(f"{path} isn't JSON: {error}") from None
    if not isinstance(data, dict):
        raise RepositoryError(f"{path} holds a {type(data).__name__}, expected an object")
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        level = [part for each in level for part in _parts(each)]
    if level:
        raise RepositoryError(f"{path} is nested more than {MAX_DEPTH} deep: refused")
    return data


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def sha256(path: Path) -> str:
    """The file's sha256, read from the disk.

    Raises:
        RepositoryError: it isn't there, or is no file.
    """
    if not path.is_file():
        raise RepositoryError(f"{path} isn't a file: fetch or save the repository again")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_stamped(path: Path) -> str:
    """The file's sha256, read once: path, inode, size and both times of change are remembered under the cache.

    A file that was overwritten in place and had its time set back (`rsync --inplace -t`) still has another ctime.
    """
    path = path.resolve()
    status = path.stat()
    identity = [str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    stamp = cache() / "sha256" / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"
    with contextlib.suppress(RepositoryError, OSError, KeyError):
        known = read_json(stamp)
        if known.get("file") == identity:
            return str(known["sha256"])
    digest = sha256(path)
    with contextlib.suppress(StorageError):  # a cache that can't be written costs time, not correctness
        write_json(stamp, {"file": identity, "sha256": digest})
    return digest
