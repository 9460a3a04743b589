"""How values read on a card."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from zoo.catalog.data_names import HUB_ID


def short_count(count: float) -> str:
    """A count in three digits: 1.5 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:  # what three digits would round up to 1000 takes the next unit
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"


def percent(share: float) -> str:
    """A share in percent, of three digits."""
    return f"{100 * share:.3g} %"


def budget(kept: Mapping[str, float | None]) -> str:
    """The shares that stay."""
    shares = (("multiply-accumulates", kept.get("macs")), ("parameters", kept.get("params")))
    return " and ".join(f"{percent(share)} of the {what}" for what, share in shares if share is not None)


def dataset_name(spec: str) -> str:
    """A data set's name on the Hub, or its folder's: the folder's parents are its owner's business."""
    return spec if HUB_ID.fullmatch(spec) else PurePath(spec).name


def is_local(name: str) -> bool:
    """Whether a name is that of somebody's folder, `./photographs`, which says nothing elsewhere."""
    return name.startswith("./")


def model_name(name: str) -> str:
    """What a card calls a model: a folder's by its own name, which is nobody else's."""
    return f"{PurePath(name).name} (its author's own weights)" if is_local(name) else name


def settings_text(values: Mapping[str, Any]) -> str:
    """Keys and values, one after the other."""
    return ", ".join(f"{key} {text(value)}" for key, value in values.items())


def text(value: Any) -> str:
    """A value, of a list each."""
    return f"[{', '.join(map(text, value))}]" if isinstance(value, list | tuple) else str(value)
