"""What a repository's own files say about it: the card's front matter, and the head of model.safetensors."""

import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from zoo.errors import require
from zoo.server.errors import BadRequest

FRONT_MATTER = 1 << 18  # bytes; a longer one is refused
NESTED = 50  # lists and mappings within each other; PyYAML's time grows with the square
HEAD = 8 << 20  # bytes of a safetensors file's head; 30,000 tensors take 3 MB
TENSORS = 100_000
DTYPES = 64
TAGS = 1000  # of a repository
_NUMBER = re.compile(r"[-+0-9.][-+0-9A-Fa-fox_:.]{300,}")  # YAML's numbers to the base 60 take time by the square
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def front_matter(text: str, longest: int = FRONT_MATTER) -> dict[str, Any]:
    """The YAML between the first two lines of dashes, as JSON would have it; empty if there is none.

    Args:
        text: a README.md's.
        longest: bytes of the YAML.

    Raises:
        BadRequest: it isn't YAML, isn't a mapping, is too long, is nested too deep, or holds aliases
            (a few of them can mean gigabytes).
    """
    if not (match := _FRONT.match(text)):
        return {}
    if len(match[1]) > longest:
        raise BadRequest(f"the metadata are longer than {longest} bytes")
    yaml = require("yaml", "serve")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(match[1], loader):
            if isinstance(event, yaml.ScalarEvent) and _NUMBER.fullmatch(event.value):
                raise ValueError(f"line {event.start_mark.line + 2} is a number of {len(event.value)} digits")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > NESTED or isinstance(event, yaml.AliasEvent):
                what = "an alias" if depth <= NESTED else "deeper"
                raise ValueError(f"line {event.start_mark.line + 2} is {what}")
        data = yaml.load(match[1], loader)
        text = json.dumps({} if data is None else data, default=str, allow_nan=False, ensure_ascii=False)
        data = json.loads(text.encode())  # what isn't text is refused here
    except Exception as error:  # PyYAML lets nearly any error of a malformed scalar through, and has limits of its own
        detail = " ".join(str(error).split())
        raise BadRequest(f"the metadata aren't YAML without aliases, nested at most {NESTED} deep: {detail}") from None
    if not isinstance(data, dict):
        raise BadRequest(f"the metadata are a {type(data).__name__}, expected a mapping")
    return data


def card(path: Path) -> dict[str, Any]:
    """The front matter of a README.md; empty if it has none that can be read."""
    try:
        status = path.stat()
    except OSError:  # it went away meanwhile
        return {}
    return _card(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=4096)
def _card(path: Path, size: int, modified: int, changed: int) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return front_matter(file.read(FRONT_MATTER + 64).decode("utf-8", "replace"))
    except (OSError, BadRequest):
        return {}


def parameter_counts(path: Path) -> dict[str, int] | None:
    """Elements by dtype as the head of a safetensors file gives them; None if it isn't one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _parameters(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Tensor(msgspec.Struct):
    """What a safetensors head says of a tensor; its metadata have neither field."""

    dtype: Annotated[str, msgspec.Meta(pattern="^[A-Z0-9_]{1,16}$")] | None = None
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]], msgspec.Meta(max_length=16)] = []


_HEAD = msgspec.json.Decoder(dict[str, Tensor])


@lru_cache(maxsize=4096)
def _parameters(path: Path, size: int, modified: int, changed: int) -> dict[str, int] | None:
    counts: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, HEAD):
                return None
            head = _HEAD.decode(file.read(length))
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeError):
        return None
    if len(head) > TENSORS:
        return None
    for tensor in head.values():
        if tensor.dtype is not None:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return counts if len(counts) <= DTYPES and sum(counts.values()) < 1 << 63 else None


def tags(card: dict[str, Any], paths: Iterator[str]) -> list[str]:
    """The tags by which a repository is found: the card's own and those that follow from its other fields."""
    tags = [
        *strings(card.get("tags")),
        *strings(card.get("library_name")),
        *strings(card.get("pipeline_tag")),
        *strings(card.get("language")),
        *[f"license:{each}" for each in strings(card.get("license"))],
        *[f"dataset:{each}" for each in strings(card.get("datasets"))],
        *[f"task_categories:{each}" for each in strings(card.get("task_categories"))],
        *[f"base_model:{each}" for each in strings(card.get("base_model"))],
    ]
    for relation in strings(card.get("base_model_relation"))[:1]:
        tags += [f"base_model:{relation}:{each}" for each in strings(card.get("base_model"))]
    if any(path.endswith(".safetensors") for path in paths):
        tags.append("safetensors")
    return list(dict.fromkeys(tags))[:TAGS]


def strings(value: Any) -> list[str]:
    """A field of the card that may be one text or several."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
