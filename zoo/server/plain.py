"""Plain folders in Hub layout, DIR/<namespace>/<name> or DIR/<name>, served as they lie and never written to.

A folder counts as a model repository if it holds a config.json. Symbolic links and hidden files are left out, so that
nothing outside the folder and nothing private in it is served by mistake. Its only commit is named after the paths,
sizes and times of its files: what is edited in place becomes another revision, and the former one is gone. Files are
hashed when someone asks for their hash, not when repositories are listed. What else can't be served, files whose names
aren't text or that lie too deep, and what can't be read, is left out too; the log says so once.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path

from zoo.errors import RepositoryError
from zoo.files import sha256_stamped
from zoo.server.errors import BadRequest, EntryNotFound, RepoNotFound
from zoo.server.log import say_once
from zoo.server.names import file_path, repo_id
from zoo.server.values import Commit, File, git_oid, is_large, pointer

FILES = 100_000  # of a repository; one that has more isn't served
_hashing = [threading.Lock() for _ in range(64)]
SHOWN = {".gitattributes", ".eval_results"}  # hidden names that belong to a repository


class Files(Mapping[str, File]):
    """The files of a folder by path, hashed when they are looked up.

    Args:
        folder: where they lie.
        status: what is known of each without reading it.
    """

    def __init__(self, folder: Path, status: dict[str, os.stat_result]) -> None:
        self._folder = folder
        self._status = status

    def __getitem__(self, path: str) -> File:
        stat = self._status[path]
        with _hashing[hash(path) % len(_hashing)]:  # many may ask for one file at once
            return _hashed(self._folder, path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def __contains__(self, path: object) -> bool:
        return path in self._status  # Mapping's own would hash the file

    def __iter__(self) -> Iterator[str]:
        return iter(self._status)

    def __len__(self) -> int:
        return len(self._status)


def repository_names(folder: Path) -> Iterator[str]:
    """The names of the plain repositories of a folder."""
    for pattern in ("*/config.json", "*/*/config.json"):
        for path in folder.glob(pattern):
            name = path.parent.relative_to(folder).as_posix()
            if _is_repository(folder, name):
                yield name


def commit(folder: Path, name: str) -> Commit | None:
    """The only commit of a plain repository; None if there is no such repository, or none that can be served."""
    if not _is_repository(folder, name):
        return None
    files = dict(sorted(islice(_walk(folder / name), FILES + 1)))
    if len(files) > FILES:
        say_once(f"{folder / name} isn't served: it holds more than {FILES} files")
        return None
    stamps = [[path, each.st_size, each.st_mtime_ns, each.st_ctime_ns] for path, each in files.items()]
    sha1 = hashlib.sha1(json.dumps([name, stamps]).encode(), usedforsecurity=False).hexdigest()
    newest = max((status.st_mtime for status in files.values()), default=0)
    return Commit(sha1, None, "the folder as it lies", "", _date(newest), Files(folder / name, files))


def _date(seconds: float) -> str:
    with contextlib.suppress(ValueError, OverflowError, OSError):  # some file systems keep years after 9999
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return "1970-01-01T00:00:00.000000Z"


def _is_repository(folder: Path, name: str) -> bool:
    try:
        repo_id("model", name)
    except RepoNotFound:
        return False
    steps = [folder / name, *(folder / name).parents][: name.count("/") + 1]
    config = folder / name / "config.json"
    with contextlib.suppress(OSError):  # one that can't even be looked at is none
        return not any(step.is_symlink() for step in [*steps, config]) and config.is_file()
    return False


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The files below a folder that can be served: regular ones, in what a repository's paths may be."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(folder / prefix) as found:
                entries = [each for each in found if not each.name.startswith(".") or each.name in SHOWN]
        except OSError as error:
            say_once(f"{folder / prefix} is left out: {error.strerror}")
            continue
        for entry in entries:
            path = f"{prefix}{entry.name}"
            try:
                file_path(path)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{path}/")
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False)
            except BadRequest:
                say_once(f"{folder / path} is left out: its name isn't text, or it lies too deep")
            except OSError as error:
                say_once(f"{folder / path} is left out: {error.strerror}")


@lru_cache(maxsize=65536)
def _hashed(folder: Path, path: str, inode: int, size: int, modified: int, changed: int) -> File:
    try:
        with (folder / path).open("rb") as file:
            large = is_large(path, size, file.read(512))
        sha256 = sha256_stamped(folder / path)
        data = pointer(sha256, size) if large else (folder / path).read_bytes()
    except (OSError, RepositoryError) as error:
        raise EntryNotFound(f"{path!r} can't be read: {error}") from None
    return File(git_oid(data), size, sha256, large)
