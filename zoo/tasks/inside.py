"""A data set of the Hub consists of its own files: nothing that it says leads to this disk or to another address.

Its card may say which files belong to it, by patterns that `datasets` looks for wherever they lead: `/**` goes through
the whole disk before it is refused. Its rows may name an image in place of holding it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.errors import DataError, require

CARDS = ("README.md", ".huggingface.yaml")
MAX_CARD = 4 * 1024 * 1024  # bytes
_OUTSIDE = re.compile(r"\s*[/\\~]|.*(://|::|\\)|\w:|(.*/)?\.\.(/|\Z)", re.DOTALL)
_ARCHIVES = re.compile(r"((zip|tar|gzip|bz2|xz|zstd|lz4)://[^:]*::)*")


def check_card(spec: str) -> None:
    """Check that the files which a data set's card names are its own; whether there is such a data set isn't.

    Args:
        spec: its id on the Hub.

    Raises:
        DataError: one may lie elsewhere.
    """
    for card in CARDS:
        try:
            texts = list(_texts(_configs(spec, card)))
        except Exception:  # the library, which reads the same, says what is wrong with it
            continue
        if outside := [text for text in texts if _OUTSIDE.match(text)]:
            raise DataError(f"{spec}: its {card} names files outside of it, {outside[0]!r}: use another data set")


def check_image(spec: str, image: Any) -> None:
    """Check that a row's image is its own or lies in a file of its data set; arguments as for `check_card`.

    Raises:
        DataError: it lies elsewhere.
    """
    path = image.get("path") if isinstance(image, Mapping) and image.get("bytes") is None else image
    if not isinstance(path, str):
        return
    archives = _ARCHIVES.match(path)
    place = path[archives.end() if archives else 0 :]
    if not place.startswith(f"hf://datasets/{spec}@") or "::" in place:
        raise DataError(f"{spec}: an image of it lies outside of it, at {path!r}: use another data set")


def _configs(spec: str, card: str) -> Any:
    """What a card says of the files, as `datasets` reads it."""
    with require("fsspec", "eval").open(f"hf://datasets/{spec}/{card}", "rb") as file:
        text = file.read(MAX_CARD).decode()
    if card.endswith(".md"):
        return require("datasets.load", "eval").DatasetCard(text).data.to_dict().get("configs")
    return require("yaml", "eval").safe_load(text).get("configs")


def _texts(part: Any, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict | list) and id(part) not in seen:
        for item in part.values() if isinstance(part, dict) else part:
            yield from _texts(item, seen | {id(part)})
