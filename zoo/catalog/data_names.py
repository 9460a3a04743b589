"""Names of data sets, as far as words go: what they may be, before anything that opens one is imported.

`told` and `model_told` give what is written down for others: no way on the author's disk.
"""

import os
import re
from pathlib import Path
from typing import Any

from zoo.errors import DataError, UnknownName, first_line

NAMED = ("digits", "digit_pairs", "digit_scenes", "noise")
HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
FORMS = ("xywh", "xyxy")  # of boxes: a corner and the size, or two corners
_SPEC = re.compile(rf"(.+?)(?:\.({'|'.join(FORMS)}))?(?:\[:(\d{{1,9}})\])?", re.ASCII | re.DOTALL)
EXPECTED = "expected images in its train/CLASS and validation/CLASS, of two classes at least"


def limited(spec: Any) -> tuple[Any, int | None]:
    """What `SPEC.xywh[:N]` names, and N; of anything else itself and None."""
    match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
    return (match[1], int(match[3]) if match[3] else None) if match else (spec, None)


def form_of_boxes(spec: Any) -> str | None:
    """What `SPEC.xywh[:N]` says that boxes are, of `FORMS`; None where it says nothing."""
    match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
    return match[2] if match else None


def on_hub(spec: Any) -> bool:
    """Whether a data set is one of the Hub: its name has the form of an id, and nothing here has that name."""
    return isinstance(spec, str) and HUB_ID.fullmatch(spec) is not None and not Path(spec).expanduser().exists()


def data_name(data: Any) -> str:
    """What data is called in messages."""
    kinds = {"tuple": "arrays", "list": "batches", "dict": "dictionary"}
    return data if isinstance(data, str) else f"the {kinds.get(type(data).__name__, type(data).__name__)}"


def told(spec: Any) -> str:
    """What others are told of a data set: of a folder its own name, as the way there is its owner's; none of an object.

    >>> told("/home/me/photographs[:100]")
    './photographs[:100]'
    """
    place, _ = limited(spec)
    if not isinstance(place, str) or place in NAMED or on_hub(place):
        return spec if isinstance(spec, str) else ""
    return f"./{Path(os.path.abspath(os.path.expanduser(place))).name}{spec[len(place) :]}"


def model_told(name: str) -> str:
    """What others are told of a model: of a folder its own name, `./mine`; other names mean the same everywhere."""
    return told(name) if "/" in name or os.sep in name or name in (".", "..") else name


def folder_named(spec: str) -> Path | None:
    """The folder or parquet file that a data set's name means, without a limit; None of the package's and the Hub's.

    Raises:
        DataError: there is no such folder.
        UnknownName: the word names no data set.
    """
    if spec in NAMED:
        return None
    try:
        folder = Path(spec).expanduser()
        is_folder = spec != "" and (folder.is_dir() or (folder.suffix == ".parquet" and folder.is_file()))
    except (OSError, RuntimeError) as error:  # a name that no file can have, the home of nobody
        raise DataError(f"{spec}: no such folder ({first_line(error)}); {EXPECTED}") from None
    if is_folder or on_hub(spec):
        return folder if is_folder else None
    if "/" in spec or os.sep in spec or (spec and folder.exists()):
        what = "a file, neither a folder nor parquet" if folder.exists() else "no such folder"
        raise DataError(f"{spec}: {what}; {EXPECTED}")
    known = "digits, digit_pairs, digit_scenes, a folder, a Hub id such as org/name"
    raise UnknownName(f"no data set {spec!r}; possible are: {known}")
