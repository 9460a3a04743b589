"""What a commit is made of: files, the changes that lead from one commit to the next, and git's own hashes."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zoo.server.errors import BadRequest, EntryNotFound
from zoo.server.names import file_path

LARGE = 10 * 1024 * 1024  # bytes; larger files are LFS objects whatever they are called
# fmt: off
SUFFIXES = (
    "7z", "arrow", "bin", "bz2", "ckpt", "ftz", "gz", "h5", "joblib", "jpeg", "jpg", "mlmodel", "model", "msgpack",
    "npy", "npz", "onnx", "ot", "parquet", "pb", "pickle", "pkl", "png", "pt", "pth", "rar", "safetensors", "tar",
    "tflite", "tgz", "wasm", "webp", "xz", "zip", "zst",
)
# fmt: on
ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in SUFFIXES).encode()


@dataclass(frozen=True)
class File:
    """A file of a commit.

    Args:
        oid: git's hash of its bytes, of the pointer for an LFS object.
        size: bytes.
        sha256: of its bytes.
        lfs: whether clients are sent to the CDN for it.
    """

    oid: str
    size: int
    sha256: str
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """A state of all files.

    Args:
        id: 40 hexadecimal digits.
        parent: the commit before it.
        title: the first line of its message.
        message: the rest.
        date: when, in ISO format.
        files: by path.
    """

    id: str
    parent: str | None
    title: str
    message: str
    date: str
    files: Mapping[str, File]


@dataclass(frozen=True)
class Change:
    """One line of what a commit does: a file added or replaced, a file deleted, or all below a folder deleted.

    Args:
        path: of the file or folder.
        file: what it shall be; None deletes.
        folder: whether the path is a folder's.
    """

    path: str
    file: File | None = None
    folder: bool = False


def changed(commit: Commit, changes: Iterable[Change]) -> dict[str, File]:
    """The files after some changes to a commit.

    Raises:
        EntryNotFound: what shall be deleted isn't there.
        BadRequest: a path can't be a file's, or is a file's and a folder's at once.
    """
    files = dict(commit.files)
    for change in changes:
        path = file_path(change.path.rstrip("/") if change.folder else change.path)
        if change.file:
            files[path] = change.file
            continue
        gone = [each for each in files if each.startswith(f"{path}/")] if change.folder else [path]
        if not gone or gone[0] not in files:
            raise EntryNotFound(f"{path!r} can't be deleted: it isn't there", commit.id)
        for each in gone:
            del files[each]
    folders = {folder for path in files for folder in parents(path)}
    if both := sorted(folders & files.keys()):
        raise BadRequest(f"{both[0]!r} would be a file and a folder")
    return files


def parents(path: str) -> list[str]:
    """The folders above a file, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is stored as an LFS object: by its suffix, its size, or because it isn't text."""
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    return size > 0 and (suffix in SUFFIXES or size > LARGE or b"\0" in sample)


def git_oid(data: bytes) -> str:
    """Git's hash of a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The file that git keeps in place of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
