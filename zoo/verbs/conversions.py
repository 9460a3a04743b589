"""Repositories that origins were converted to, kept in the cache: made once, by whichever process comes first."""

import atexit
import contextlib
import hashlib
import shutil
import tempfile
from pathlib import Path

from zoo import atomic
from zoo.catalog.entry import Entry
from zoo.errors import RepositoryError, StorageError, first_line
from zoo.files import cache, read_json, write_json
from zoo.hub import repository
from zoo.printable import logger
from zoo.structure.describing import describe
from zoo.verbs.converting import checked_hashes, converted

log = logger(__name__)


def conversion(entry: Entry, checkpoint: Path) -> Path:
    """The repository that an origin is converted to: once for each version of its files, of its entry and of ours.

    Args:
        entry: of the catalog, with an origin.
        checkpoint: the folder of its files.

    Returns:
        The repository's folder; where the cache can't be written, a temporary one of this process.

    Raises:
        CheckpointError: the checkpoint is damaged, dangerous, not understood, or another than the catalog's.
    """
    hashes = checked_hashes(checkpoint, entry)
    key = hashlib.sha256(repr((hashes, entry, repository.versions())).encode()).hexdigest()[:16]
    folder = cache() / "converted" / f"{entry.name}-{key}"
    try:
        with atomic.alone(folder):  # another process may convert the same
            if not (folder / repository.CONFIG).is_file():
                _convert(entry, checkpoint, folder)
                write_json(_last(entry), {"folder": folder.name})
    except StorageError as error:  # a cache that can't be written costs time alone
        log.warning("%s isn't kept, but converted for this process alone: %s", entry.name, first_line(error))
        folder = Path(tempfile.mkdtemp(prefix="zoo-")) / entry.name
        atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
        _convert(entry, checkpoint, folder)
    return folder


def converted_before(entry: Entry) -> Path | None:
    """The repository that an origin was converted to last on this machine, if it was."""
    with contextlib.suppress(RepositoryError, KeyError, TypeError):
        folder = _last(entry).with_name(Path(read_json(_last(entry))["folder"]).name)
        return folder if (folder / repository.CONFIG).is_file() else None
    return None


def _convert(entry: Entry, checkpoint: Path, folder: Path) -> None:
    assert entry.origin is not None  # or there would be no checkpoint
    log.info("converting %s, a %s checkpoint", entry.origin.repo, entry.origin.format)
    model = converted(checkpoint, entry.name, entry)
    repository.write_repository(folder, model, describe(model), {})


def _last(entry: Entry) -> Path:
    """The file that names what an origin was converted to last: times would tell wrong when the clock was set back."""
    return cache() / "converted" / f"{entry.name}.json"
