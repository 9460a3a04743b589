"""Latencies as bars with their intervals, a panel for each batch."""

import math
from collections.abc import Sequence
from pathlib import Path

from zoo.atomic import writing
from zoo.errors import require
from zoo.pages.style import COMPRESSED, DPI, GREY
from zoo.printable import printable

Bar = tuple[str, int, float, float, float, str]
"""Name, images of a call, milliseconds, their interval, and what is told of the model."""


def draw(machine: str, bars: Sequence[Bar], file: Path) -> None:
    """Draw bars.

    Args:
        machine: what computed.
        bars: in the order in which they shall stand.
        file: a PNG; it appears whole or not at all.

    Raises:
        MissingExtra: matplotlib isn't installed.
        StorageError: the disk is full or refuses.
    """
    batches = dict.fromkeys(bar[1] for bar in bars)
    panels = [[bar for bar in bars if bar[1] == batch] for batch in batches]
    figure = require("matplotlib.figure", "build").Figure(
        figsize=(7, 0.8 * len(panels) + 0.36 * len(bars) + 0.4), layout="constrained"
    )
    heights = [len(panel) + 1 for panel in panels]
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, batch, panel in zip(axes, batches, panels, strict=True):
        widest = max(high if math.isfinite(high) else ms for _, _, ms, _, high, _ in panel)
        for place, (_, _, ms, low, high, said) in enumerate(panel):
            ends = [[max(0, ms - low)], [max(0, high - ms)]] if math.isfinite(low) and math.isfinite(high) else None
            colour = GREY if said == "base" else COMPRESSED
            axis.barh(place, ms, 0.7, xerr=ends, color=colour, ecolor="black", capsize=3)
            axis.text((high if ends else ms) + 0.01 * widest, place, f" {ms:.3g} ms {said}", va="center", fontsize=8)
        axis.set_yticks(range(len(panel)), [printable(bar[0], 60) for bar in panel], fontsize=8)
        axis.invert_yaxis()
        axis.set(xlim=(0, 1.35 * widest), xlabel=f"ms of {batch} image{'s' * (batch > 1)}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(printable(machine, 100), fontsize=9)
    with writing(file) as out:
        figure.savefig(out, format="png", dpi=DPI)
