"""Plain folders in Hub layout, DIR/<namespace>/<name> or DIR/<name>, served as they lie and never written to.

A folder counts as a model repository if it holds a config.json. Symbolic links and hidden files are left out, so that
nothing outside the folder and nothing private in it is served by mistake. Its only commit is named after the paths,
sizes and times of its files: what is edited in place becomes another revision, and the former one is gone. Files are
hashed when someone asks for their hash, not when repositories are listed.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from zoo.files import sha256_stamped
from zoo.server.errors import RepoNotFound
from zoo.server.names import repo_id
from zoo.server.values import Commit, File, git_oid, is_large, pointer

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
        return _hashed(self._folder, path, stat.st_ino, stat.st_size, stat.st_mtime_ns)

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
    """The only commit of a plain repository; None if there is no such repository."""
    if not _is_repository(folder, name):
        return None
    files = dict(sorted(_walk(folder / name)))
    stamps = [[path, status.st_size, status.st_mtime_ns] for path, status in files.items()]
    sha1 = hashlib.sha1(json.dumps([name, stamps]).encode(), usedforsecurity=False).hexdigest()
    newest = max((status.st_mtime for status in files.values()), default=0)
    date = datetime.fromtimestamp(newest, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return Commit(sha1, None, "the folder as it lies", "", date, Files(folder / name, files))


def _is_repository(folder: Path, name: str) -> bool:
    try:
        repo_id("model", name)
    except RepoNotFound:
        return False
    steps = [folder / name, *(folder / name).parents][: name.count("/") + 1]
    config = folder / name / "config.json"
    return not any(step.is_symlink() for step in [*steps, config]) and config.is_file()


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name not in SHOWN:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)


@lru_cache(maxsize=65536)
def _hashed(folder: Path, path: str, inode: int, size: int, modified: int) -> File:
    with (folder / path).open("rb") as file:
        large = is_large(path, size, file.read(512))
    sha256 = sha256_stamped(folder / path)
    data = pointer(sha256, size) if large else (folder / path).read_bytes()
    return File(git_oid(data), size, sha256, large)
