"""What is left of each layer, read from the heads of two files of weights."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import msgspec

from zoo.catalog.changes import Layer
from zoo.declarations import Whole
from zoo.files import MAX_JSON

MOST = 2_000  # layers
Shape = tuple[int, ...]


def left(folder: Path, dense: Path) -> list[Layer]:
    """Tell what became of the weights of each layer.

    Args:
        folder: a repository's, of the smaller model.
        dense: that of its base.

    Returns:
        The layers of the base that the model has, by their names; macs aren't known. Nothing where there is none, or a
        file can't be read.
    """
    smaller = defaultdict(list)
    for name, shape in _weights(folder).items():
        smaller[name].append(shape)
        parent, _, part = name.rpartition(".")
        if part.isdecimal():  # one of the layers that a factored one became
            smaller[parent].append(shape)
    kept = {path: (was, smaller[path]) for path, was in _weights(dense).items() if path in smaller}
    return [_layer(path, was, now) for path, (was, now) in [*kept.items()][:MOST]]


def _layer(path: str, was: Shape, now: list[Shape]) -> Layer:
    outputs, inputs = (was[0], now[-1][0]), (was[1], now[0][1])
    rank = min(now[0][0], now[-1][1]) if len(now) > 1 else None
    params = math.prod(was), sum(map(math.prod, now))
    return Layer(path, outputs, inputs, rank, (0, 0), params)


def _weights(folder: Path) -> dict[str, Shape]:
    """Layer → the shape of its weight."""
    try:
        with (folder / "model.safetensors").open("rb") as file:
            head = file.read(min(int.from_bytes(file.read(8), "little"), MAX_JSON))
        told: dict[str, object] = msgspec.json.decode(head, type=dict[str, object])
        tensors = {name: msgspec.convert(each, _Tensor) for name, each in told.items() if name != "__metadata__"}
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}
    matrices = {name: each.shape for name, each in tensors.items() if name.endswith(".weight") and len(each.shape) > 1}
    return {name.removesuffix(".weight"): shape for name, shape in sorted(matrices.items(), key=_numbered)}


def _numbered(item: tuple[str, Shape]) -> list[tuple[bool, int, str]]:
    """An order of names in which block 2 stands before block 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in item[0].split(".")]


class _Tensor(msgspec.Struct):
    shape: Annotated[tuple[Whole, ...], msgspec.Meta(max_length=8)]
