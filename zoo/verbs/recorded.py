"""Verifications as files, one a model, as `model_cards/results` has them: a list of models that was cut off goes on.

A file has the Report, the rows that it was judged by, and the hash of what was asked: of the model, its claims, the
data's name, its files where they lie here, and the settings. Where that is the same again, the model isn't measured
again. It appears whole when its model is done, and says nothing of when that was: whatever stopped
the list, the files are the same in the end.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from zoo import catalog
from zoo.atomic import refusals
from zoo.catalog.data_names import NAMED, data_name, limited, on_hub
from zoo.catalog.report import COSTS, Report, Verification, Verified
from zoo.errors import RepositoryError, ZooError
from zoo.files import read_json, write_json
from zoo.hub import repository
from zoo.structure.sources import is_base_id
from zoo.tasks.evaluation import of_first
from zoo.verbs.loading import folder_of
from zoo.verbs.verification import verify_together

MODELS, WEIGHTS = 8, 2**32  # models of one pass, which a kill loses, and bytes of their weights


def verify_list(
    names: Sequence[str],
    settings: Mapping[str, Any],
    folder: Path | None = None,
    *,
    again: bool = False,
    refused: Callable[[str, ZooError], None] | None = None,
) -> Iterator[Verification]:
    """Verify models, as many in one pass over the images as memory may hold, and write a file for each.

    Args:
        names: as for `verify`.
        settings: the other arguments of `verify`.
        folder: where the files are, and those that are there aren't measured again; None writes none.
        again: measure them again.
        refused: is told the name of a model that can't be verified, and why, and the others go on; None raises it.

    Yields:
        The Verification of each, those that were there first.
    """
    done: dict[str, Verification | ZooError | None] = dict.fromkeys(names)
    if folder:
        _check_apart(names, folder)
        with refusals(folder):  # before hours are spent
            folder.mkdir(parents=True, exist_ok=True)
        _keep(names, settings, folder)
        said = _said(settings, folder)
        done = done if again else of_first({name: _had(name, settings, said, folder) for name in done})
    for name, had in done.items():
        if isinstance(had, Verification):
            yield had
        elif had is not None:
            if refused is None:
                raise had
            refused(name, had)
    for group in _groups([name for name, had in done.items() if had is None], settings):
        for name, found in verify_together(group, refused=refused, **settings).items():
            if folder and os.environ.get("RANK", "0") == "0":  # of several processes one writes
                verified = Verified(found.rows, _asked(name, settings, said))
                write_json(file_of(name, folder), replace(found.report, verified=verified).to_json())
            yield found


def recorded(name: str, settings: Mapping[str, Any], folder: Path) -> Verification | None:
    """What a model's file says; None where there is none, or it was asked something else.

    Raises:
        RepositoryError: the file can't be read, or data is an object, which no file can tell from another.
    """
    return _recorded(name, settings, _said(settings, folder), folder)


def _recorded(name: str, settings: Mapping[str, Any], said: Mapping[str, Any], folder: Path) -> Verification | None:
    path = file_of(name, folder)
    if not path.exists():
        return None
    report = Report.from_json(read_json(path), str(path))
    if report.verified is None or report.verified.asked != _asked(name, settings, said):
        return None
    return Verification(report.name, report.verified.rows, replace(report, verified=None))


def _had(
    name: str, settings: Mapping[str, Any], said: Mapping[str, Any], folder: Path
) -> Verification | ZooError | None:
    """What `_recorded` returns or raises."""
    try:
        return _recorded(name, settings, said, folder)
    except ZooError as error:
        return error


def file_of(name: str, folder: Path) -> Path:
    """Where a model's file is: `digits_vit.json`, of `org/name` and folders `org--name.json`."""
    return folder / f"{'--'.join(part for part in Path(name).parts if part not in ('/', '..', '.'))}.json"


def _check_apart(names: Sequence[str], folder: Path) -> None:
    """Refuse two models that would write one file."""
    taken: dict[Path, str] = {}
    for name in names:
        if (other := taken.setdefault(path := file_of(name, folder), name)) != name:
            raise RepositoryError(f"{other} and {name} would both be written to {path}: verify them apart")


def _keep(names: Sequence[str], settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to put what needs no images in the place of a file that says more."""
    for path in (file_of(name, folder) for name in names if settings.get("structure_only")):
        further = (
            sorted(Report.from_json(read_json(path), str(path)).measured.keys() - {*COSTS}) if path.exists() else ()
        )
        if further:
            raise RepositoryError(
                f"{path} has {', '.join(further)}, which --structure would drop: choose another folder"
            )


def _asked(name: str, settings: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """The hash of the model, of what is claimed of it, and of whatever figures depend on."""
    text = json.dumps([*_model(name, settings), said], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _said(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings that figures of any model depend on, and the state of the data: looked at once for a list.

    Raises:
        RepositoryError: data is an object, which no file can tell from another.
    """
    asked = {"device": "cpu", **settings}
    said = {key: value for key, value in asked.items() if key != "workers" and value not in (None, False, "")}
    if (data := said.get("data")) is not None:
        if not isinstance(data, str):
            raise RepositoryError(f"results are written of data that has a name, found {data_name(data)}")
        place, _ = limited(data)
        if not (place in NAMED or on_hub(place)):
            said["data"] = [os.path.abspath(os.path.expanduser(data)), _state(Path(place).expanduser(), folder)]
    return said


def _model(name: str, settings: Mapping[str, Any]) -> list[str]:
    """The files that say what a model is, its weights by their sha256, and what is claimed; of a base its id."""
    if is_base_id(name):
        return [name]
    folder = folder_of(name, settings.get("revision"), settings.get("namespace"))
    weights = str(repository.read_config(folder)["zoo"]["weights_sha256"])
    files = [folder / each for each in (repository.CONFIG, repository.RESULTS)]
    entry = catalog.known(name)
    return [weights, *(each.read_text("utf-8") for each in files if each.exists()), repr(entry and entry.reported)]


def _state(place: Path, but: Path) -> str:
    """What tells data on this disk from what it becomes when somebody changes it; apart from a folder in it."""
    files = [place] if place.is_file() else sorted(each for each in place.rglob("*") if each.is_file())
    inside = but.resolve()
    stamps = [
        (str(each), (status := each.stat()).st_size, status.st_mtime_ns)
        for each in files
        if inside not in each.resolve().parents
    ]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()


def _groups(names: Sequence[str], settings: Mapping[str, Any]) -> Iterator[list[str]]:
    """Models in their order, as many as one pass takes."""
    group: list[str] = []
    held = 0
    for name in names:
        size = _bytes(name, settings)
        if group and (len(group) == MODELS or held + size > WEIGHTS):
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _bytes(name: str, settings: Mapping[str, Any]) -> int:
    """How large a model's weights are; nothing of one that can't be had, which whoever loads it says."""
    try:
        folder = folder_of(name, settings.get("revision"), settings.get("namespace"))
        return (folder / repository.WEIGHTS).stat().st_size
    except (ZooError, OSError):
        return 0
