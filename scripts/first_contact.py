"""Load every torch-dag model from where it is published, measure it, and pin what was loaded in the catalog.

python scripts/first_contact.py [--data FOLDER_OR_HUB_ID] [--images 1000] [NAME ...]

Without --data only the structure is compared. After each model its figures go to model_cards/results/<name>.json, and
the commit and the sha256 that its entry lacks into its origin's line of the catalog's file. A run that was stopped goes
on where it stopped: no image is evaluated twice, unless the model is named. A known commit or hash that differs is a
failure and stays as it is. The exit code is 1 if a model failed.
"""

import argparse
import math
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zoo
from zoo import catalog
from zoo.atomic import writing
from zoo.catalog.entry import Entry
from zoo.catalog.report import Report, Row
from zoo.errors import CatalogError, CheckpointError, ZooError
from zoo.files import read_json, write_json
from zoo.verbs.converting import CHECKPOINT_FILES, checked_hashes
from zoo.verbs.loading import origin_of

CATALOG = Path(catalog.__file__).parent
RESULTS = Path("model_cards/results")
ORIGIN = re.compile(r"^([ \t]*origin[ \t]*=[ \t]*\{[^{}\n]*?)([ \t]*\}.*)$", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--data", help="ImageNet's validation images: a folder of class folders, or a Hub id")
    parser.add_argument("--images", type=int, default=1000, help="of the data at most so many")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder that figures go to")
    asked = parser.parse_args(arguments)
    names = asked.names or [name for name in zoo.names(status="origin") if _origin(name).format == "torch-dag"]
    failed: dict[str, str] = {}
    for name in names:
        print(name, flush=True)
        path = asked.results / f"{name}.json"
        try:
            rows = contact(catalog.info(name), path, asked.data, asked.images, again=bool(asked.names and asked.data))
        except (ZooError, RuntimeError) as error:  # the others are loaded all the same
            failed[name] = str(error)
        else:
            for row in rows:
                print(f"  {row.figure}: {row.measured} (reported {row.reported}), {row.verdict}")
            if any(row.verdict == "differs" for row in rows):
                failed[name] = "differs from what is claimed"
        if name in failed:
            print(f"  failed: {failed[name]}", flush=True)
    print(f"{len(names) - len(failed)} of {len(names)} models agree; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def contact(entry: Entry, results: Path, data: str | None, images: int, *, again: bool) -> list[Row]:
    """Load one model, compare it with what is claimed, and pin it; what fails to load isn't pinned.

    The structure is compared each time; images are evaluated once, unless asked for again.
    """
    _, checkpoint = origin_of(entry.name)
    sha256 = checked_hashes(checkpoint, entry)[CHECKPOINT_FILES[_origin(entry.name).format][-1]]
    known = Report.from_json(read_json(results)) if results.is_file() and not again else None
    classifies = data is not None and entry.task == "image-classification"
    evaluate = classifies and (known is None or "top1" not in known.measured)
    found = zoo.verify(entry.name, data=data, images=images if evaluate else None, structure_only=not evaluate)
    if known is None or evaluate:
        known = found.report
        write_json(results, known.to_json())
    pin(_file(entry), entry.name, commit=checkpoint.name, sha256=sha256)  # the cache names folders by commit
    return [*(row for row in found.rows if row.figure != "top1"), *_accuracy(entry, known)]


def _accuracy(entry: Entry, report: Report) -> list[Row]:
    """The accuracy beside the claimed one; two standard deviations of the draw of the images apart, they agree."""
    if "top1" not in report.measured:
        return []
    rows = [row for row in entry.reported if "top1" in row.figures and row.input in (None, entry.input[-1])]
    claimed = next((row.figures["top1"] for row in rows if not row.device and not row.runtime), None)
    drawn = 2 * math.sqrt(claimed * (1 - claimed) / report.data["images"]) if claimed else 0.0
    return [Row("top1", claimed, report.measured["top1"], drawn)]


def pin(file: Path, name: str, *, commit: str, sha256: str) -> None:
    """Write commit and sha256 into an entry's origin, where they are missing or shortened; the rest stays as it is.

    Raises:
        CheckpointError: another commit or hash stands there.
        CatalogError: the origin isn't written on one line of its own.
    """
    text = file.read_bytes().decode()
    known = _origins(text)[name]
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise CheckpointError(f"{name} was loaded at {commit}, expected a commit of 40 digits")
    if not commit.startswith(known.get("commit", "")) or known.get("sha256", sha256) != sha256:
        raise CheckpointError(f"{file}: {name} is pinned to {known}, found commit {commit} and sha256 {sha256}")
    start, end = _table(text, name)
    lines = list(ORIGIN.finditer(text, start, end))
    if len(lines) == 1:
        inside, rest = lines[0].groups()
        for key, value in (("commit", commit), ("sha256", sha256)):
            if key in known:
                inside = inside.replace(f'"{known[key]}"', f'"{value}"')
            else:
                inside += f', {key} = "{value}"'
        changed = text[: lines[0].start()] + inside + rest + text[lines[0].end() :]
        expected = {**_origins(text), name: {**known, "commit": commit, "sha256": sha256}}
        if _origins(changed) == expected:
            if changed != text:
                with writing(file) as out:
                    out.write(changed.encode())
            return
    raise CatalogError(f"{file}: the origin of {name} isn't one line of its own: write commit {commit} and {sha256}")


def _origins(text: str) -> dict[str, Mapping[str, Any]]:
    return {model["name"]: model.get("origin", {}) for model in tomllib.loads(text)["model"]}


def _table(text: str, name: str) -> tuple[int, int]:
    """Where a model's table begins and ends."""
    starts = [match.start() for match in re.finditer(r"^\[\[model\]\]", text, re.MULTILINE)]
    ends = [*starts[1:], len(text)]
    order = list(_origins(text))
    return list(zip(starts, ends, strict=True))[order.index(name)]


def _file(entry: Entry) -> Path:
    own = os.environ.get("ZOO_CATALOG")
    folders = [Path(own), CATALOG] if own else [CATALOG]
    found = (file for folder in folders for file in sorted(folder.rglob(f"{entry.family}.toml")))
    return next(file for file in found if file.parent.name == entry.project)


def _origin(name: str) -> Any:
    origin = catalog.info(name).origin
    if origin is None:
        raise CatalogError(f"{name} has no origin to be loaded from")
    return origin


if __name__ == "__main__":
    sys.exit(main())
