"""How much of each layer is left: a bar for each, of its widths or its rank, block by block."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from zoo.pages import style
from zoo.printable import printable
from zoo.structure.plan import Factor, Plan

IN_A_ROW = 56  # bars; more go into further rows
NUMBERED = 28  # bars of a row, of which each can say its number
GAP = 0.8  # of a bar, between two blocks
Kept = tuple[str, int, int, str]
"""A layer's path, what is left, of how many, and whether those are outputs or its rank."""


def kept(plan: Plan, fingerprint: Mapping[str, str], held: Mapping[str, Sequence[int]]) -> list[Kept]:
    """What a plan leaves of each layer.

    Args:
        plan: edits, of which those that factor say ranks.
        fingerprint: of the dense base, path → class and shapes (`zoo.structure.base.fingerprint`).
        held: tensor → its shape, of the model.
    """
    ranks = {path: rank.rank for edit in plan.edits if isinstance(edit, Factor) for path, rank in edit.layers.items()}
    shapes = {path: shape for path, text in fingerprint.items() if (shape := _shape(text))}
    found = []
    for path, shape in shapes.items():
        if path in ranks:
            found.append((path, ranks[path], min(shape[0], math.prod(shape[1:])), "rank"))
        else:
            found.append((path, int(held.get(f"{path}.weight", shape)[0]), shape[0], "outputs"))
    return found if any(count < whole for _, count, whole, _ in found) else []


def _shape(text: str) -> list[int]:
    """The shape of the weight of a layer that multiplies; empty of any other."""
    kind, _, shapes = text.partition(" ")
    weight = next((each.partition("=")[2] for each in shapes.split(" ") if each.startswith("weight=")), "")
    shape = [int(size) for size in weight.split("x") if size]
    return shape if len(shape) > 1 and not kind.startswith(("Embedding", "ConvTranspose")) else []


def blocks(paths: Sequence[str]) -> list[str]:
    """The block that each layer belongs to; a layer alone is one of the block around it.

    >>> blocks(["conv1.3", "layer2.0.conv1", "layer2.0.downsample.0", "heads.1.box.0.conv", "heads.1.last", "fc"])
    ['conv1', 'layer2.0', 'layer2.0', 'heads.1', 'heads.1', 'fc']
    """
    around = [_around(path) for path in paths]
    sizes = Counter(names[0] for names in around)
    return [names[sizes[names[0]] == 1 and len(names) > 1] for names in around]


def _around(path: str) -> list[str]:
    """The blocks around a layer, the innermost first."""
    parts = path.split(".")
    ends = [place for place, (part, after) in enumerate(pairwise(parts), 1) if part.isdigit() and not after.isdigit()]
    return [".".join(parts[:end]) for end in ends[::-1]] or [parts[0]]


def alt(layers: Sequence[Kept]) -> str:
    """The picture in words."""
    smaller = [layer for layer in layers if layer[1] < layer[2]]
    least = min(smaller, key=lambda layer: layer[1] / layer[2])
    kinds = " or ".join(f"the {what}" for what in dict.fromkeys(what for *_, what in layers))
    words = f"{len(smaller)} have fewer, {least[0]} keeps the least, {least[1]} of {least[2]}"
    return f"Bars of what is left of {kinds} of {len(layers)} convolutions and linear layers: {words}."


def draw(layers: Sequence[Kept]) -> Any:
    """A figure of what is left of each layer.

    Args:
        layers: from `kept`.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    held = rows(layers)
    longest = max(map(len, blocks([path for path, *_ in layers])))
    figure, axes = style.figure(0.5 + len(held) * (1.5 + 0.06 * longest), len(held))
    for axis, row in zip(axes[:, 0], held, strict=True):
        _draw_row(axis, row, max(map(len, held)))
    whole = {"rank": "full rank (green)", "outputs": "outputs of the dense one (blue)"}
    words = " or ".join(whole[what] for what in dict.fromkeys(what for *_, what in layers))
    axes[0, 0].set_title(f"what is left of each layer, % of the {words}", fontsize=9)
    return figure


def rows(layers: Sequence[Kept]) -> list[list[Kept]]:
    """Layers in rows of about the same length, which don't break a block where that can be had."""
    length = math.ceil(len(layers) / math.ceil(len(layers) / IN_A_ROW))
    found: list[list[Kept]] = [[]]
    for _, group in _grouped(layers):
        if found[-1] and len(found[-1]) + len(group) / 2 > length:
            found.append([])
        found[-1] += group
    return [row[at : at + 2 * IN_A_ROW] for row in found for at in range(0, len(row), 2 * IN_A_ROW)]


def _grouped(layers: Sequence[Kept]) -> Iterator[tuple[str, list[Kept]]]:
    named = zip(blocks([path for path, *_ in layers]), layers, strict=True)
    for name, members in groupby(named, key=lambda each: each[0]):
        yield name, [layer for _, layer in members]


def _draw_row(axis: Any, row: Sequence[Kept], most: int) -> None:
    places: list[float] = []
    labels: dict[float, str] = {}
    at = 0.0
    for name, members in _grouped(row):
        group = [at + number for number, _ in enumerate(members)]
        labels[(group[0] + group[-1]) / 2] = printable(name, 40)
        places += group
        at = group[-1] + 1 + GAP
    axis.bar(places, [100] * len(row), 0.8, color=style.PALE)
    shares = [100 * min(1, count / whole) for _, count, whole, _ in row]
    colours = [style.RANK if what == "rank" else style.COMPRESSED for *_, what in row]
    axis.bar(places, shares, 0.8, color=colours)
    if most <= NUMBERED:
        for place, (_, count, _, _) in zip(places, row, strict=True):
            axis.text(place, 102, str(count), ha="center", va="bottom", fontsize=7)
    axis.set_xticks([*labels], [*labels.values()], rotation=90 if len(labels) > 6 else 0, fontsize=8)
    axis.tick_params(axis="x", length=0)
    axis.set(xlim=(-1, max(at, most) - GAP + 0.6), ylim=(0, 112), yticks=[0, 50, 100])
