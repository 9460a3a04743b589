"""Files and folders that are whole or absent: written aside, flushed to the disk, renamed."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from zoo.errors import StorageError


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
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


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
    folder = folder.absolute()
    with refusals(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        former = temporary.with_name(f"{temporary.name}.former")
        try:
            os.chmod(temporary, 0o755)
            yield temporary
            if folder.exists():
                os.rename(folder, former)
            os.rename(temporary, folder)
        finally:
            if former.exists() and not folder.exists():
                os.rename(former, folder)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(former, ignore_errors=True)


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
        what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise StorageError(
            error.errno,
            f"{path} can't be written: {what}; nothing half-written was left, free space or choose another place",
        ) from error
