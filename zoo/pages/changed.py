"""What became of each layer, drawn: a bar for each, of its macs as they were and as they are."""

from pathlib import Path

from zoo.atomic import writing
from zoo.catalog.changes import Changes, became
from zoo.errors import require
from zoo.pages.style import COMPRESSED, DPI, PALE
from zoo.printable import printable

MOST = 150  # bars that still can be read; of more layers those of most macs are drawn


def plot(changes: Changes, file: Path) -> None:
    """Draw the macs of each layer, of the dense model and what is left of them.

    Args:
        changes: of a model.
        file: a PNG.

    Raises:
        MissingExtra: matplotlib isn't installed.
        StorageError: the disk is full or refuses.
    """
    least = sorted(changes.layers, key=lambda layer: -layer.macs[0])[:MOST][-1].macs[0]
    layers = [layer for layer in changes.layers if layer.macs[0] >= least][:MOST]
    figure = require("matplotlib.figure", "build").Figure(figsize=(8, 1.2 + 0.2 * len(layers)), layout="constrained")
    axis, places = figure.subplots(), range(len(layers))
    for which, colour, word in ((0, PALE, "before"), (1, COMPRESSED, "after")):
        shares = [100 * layer.macs[which] / changes.macs[0] for layer in layers]
        axis.barh(places, shares, height=0.8, color=colour, label=word)
    widest = max(layer.macs[0] for layer in layers) / changes.macs[0]
    for place, layer in zip(places, layers, strict=True):
        words = became(layer) if layer.changed else layer.stays
        axis.text(100 * layer.macs[0] / changes.macs[0] + widest, place, printable(words), va="center", fontsize=6)
    axis.set_yticks(places, [printable(layer.path) for layer in layers], fontsize=6)
    axis.set_xlim(0, 160 * widest)
    axis.set_ylim(len(layers) - 0.5, -0.5)
    macs, params = (pair[1] / max(pair[0], 1) for pair in (changes.macs, changes.params))
    axis.set_title(printable(f"{changes.smaller}: {macs:.1%} of the macs, {params:.1%} of the params"), fontsize=9)
    axis.set_xlabel("share of the macs, %")
    axis.legend(loc="lower right", fontsize=7)
    with writing(file) as out:
        figure.savefig(out, format="png", dpi=DPI)
