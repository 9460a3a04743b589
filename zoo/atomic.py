"""Files and folders that are whole or absent, whenever the process or the machine ends.

What is written lies aside, beside its place, is flushed to the disk, and takes its place by one rename:

    .NAME.RANDOM.zoo-aside           the file; of a folder, empty and first to come and last to go
    .NAME.RANDOM.zoo-aside.folder    the folder; once it has taken its place, the former one, which is removed
    .NAME.RANDOM.zoo-aside.former    the former one, where the file system can't exchange two folders in one step:
                                     while NAME is missing, whoever looks for it puts it back

The first is locked (flock) by whoever writes. The system takes the lock away when that process ends, so what isn't
locked is what a kill has left, and the next write beside it removes it. A process's id wouldn't do: it is given again,
and means nothing on another machine of a shared disk. On a file system without locks nothing is removed.
"""

import contextlib
import errno
import glob
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from zoo.errors import StorageError
from zoo.exchange import exchanged

_SUFFIX = ".zoo-aside"
_ASIDE = re.compile(rf"\.(.+)\.[a-z0-9_]+{_SUFFIX}")
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST}  # what POSIX lets a rename onto a folder say


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears when the block ends, and not at all if it fails.

    Args:
        path: where it shall lie; the folder is made.

    Yields:
        The file, open for bytes.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with refusals(path), _aside(path) as (aside, file):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
        _flush(path.parent)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Fill a folder that appears, or takes the former one's place, when the block ends.

    Args:
        folder: where it shall lie.

    Yields:
        The folder to fill.

    Raises:
        StorageError: the disk is full or refuses.
    """
    folder = Path(os.path.realpath(folder))
    with refusals(folder):
        if folder.exists() and not os.access(folder, os.W_OK):  # the former one couldn't be removed
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with _aside(folder) as (aside, _):
            new = _folder(aside)
            new.mkdir()
            os.chmod(new, 0o755)
            yield new
            for path in (*new.rglob("*"), new):
                _flush(path)
            _put(new, folder, _former(aside))
            _flush(folder.parent)  # before the former one goes


@contextlib.contextmanager
def alone(place: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep other processes out of the block that say the same of a place; they wait. Folders that stay empty go again.

    Args:
        place: what the block will make.
        waits: called if there is another.

    Raises:
        StorageError: the disk is full or refuses.
    """
    made = list(itertools.takewhile(lambda parent: not parent.exists(), place.parents))
    lock = place.with_name(f".{place.name}.alone{_SUFFIX}")
    try:
        while True:
            with refusals(place):
                _make(place.parent)
                file = lock.open("ab")
            with file:
                if _locked(file) is False:
                    waits()
                    _locked(file, wait=True)
                if os.fstat(file.fileno()).st_nlink:  # else the one before has removed it when it was done
                    try:
                        yield
                        return
                    finally:
                        lock.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


def discard(folder: Path) -> None:
    """Remove a folder at once, if it is there: nobody finds half of it.

    Raises:
        StorageError: the disk refuses.
    """
    if folder.exists():
        with refusals(folder), _aside(folder) as (aside, _):
            os.rename(folder, _folder(aside))
            _flush(folder.parent)


def restore(folder: Path) -> None:
    """Put a folder back whose replacement was cut off in between its two steps, if it was."""
    folder = Path(os.path.realpath(folder))
    if not folder.exists():
        for former in folder.parent.glob(f".{glob.escape(folder.name)}.*{_former(Path(_SUFFIX))}"):
            with contextlib.suppress(OSError):
                os.rename(former, folder)


def sweep(parent: Path) -> None:
    """Remove what killed processes have left in a folder, and put back what they had moved away."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if _ASIDE.fullmatch(name):
                with contextlib.suppress(OSError, ValueError), (parent / name).open("r+b") as file:  # no place may be .
                    if _locked(file):
                        _clear(parent / name)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Tell what the disk refuses in the block.

    Raises:
        StorageError: which path can't be written, and why.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        path = Path(*(_ASIDE.sub(r"\1", part.removesuffix(".folder")) for part in path.parts))  # that it is written for
        what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise StorageError(
            error.errno,
            f"{path} can't be written: {what}; nothing half-written was left, free space or choose another place",
        ) from error


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A file beside a path, this process's alone; it goes with the block, and so does what lies beside it."""
    _make(path.parent)
    sweep(path.parent)
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        with os.fdopen(descriptor, "wb") as file:
            try:
                _locked(file, wait=True)
                if os.fstat(descriptor).st_nlink:  # else another's sweep came between the two
                    yield Path(name), file
                    return
            finally:
                with contextlib.suppress(OSError):
                    _clear(Path(name))


def _locked(file: IO[bytes], wait: bool = False) -> bool | None:
    """Whether a file is this process's now, until it is closed; None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _put(new: Path, folder: Path, former: Path) -> None:
    """Let a folder take its place; if there is a former one, that lies at `new` or `former` then."""
    while True:
        try:
            os.rename(new, folder)  # nothing was there, or an empty folder
            return
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
        with contextlib.suppress(FileNotFoundError):  # another has taken the former one away
            if exchanged(new, folder):
                return
            shutil.rmtree(former, ignore_errors=True)
            os.rename(folder, former)  # and once more, if another puts one there before the next step


def _clear(aside: Path) -> None:
    """Remove what was written aside, when it isn't any more; a former folder that nothing has replaced goes back."""
    place = aside.with_name(_ASIDE.fullmatch(aside.name)[1])  # type: ignore[index]
    if _former(aside).exists() and not place.exists():
        os.rename(_former(aside), place)
    for folder in (_folder(aside), _former(aside)):
        if folder.exists():
            shutil.rmtree(folder)
    aside.unlink(missing_ok=True)


def _folder(aside: Path) -> Path:
    return aside.with_name(f"{aside.name}.folder")


def _former(aside: Path) -> Path:
    return aside.with_name(f"{aside.name}.former")


def _make(folder: Path) -> None:
    """Make a folder, and those that it lies in."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may only be written to; on Windows any
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that doesn't flush folders
            raise
    finally:
        os.close(descriptor)
