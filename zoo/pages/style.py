"""How pictures look, all of them: one width, colours that the colour-blind tell apart, and a white ground on any page.

A picture that lies beside a card carries the hash of what it was drawn from, so that whether it is stale is told
without drawing it again; pixels differ from one machine to another.
"""

import hashlib
import inspect
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from zoo.errors import require

COMPRESSED, DENSE, RANK = "#0072B2", "#D55E00", "#009E73"  # of Okabe's and Ito's, which the colour-blind tell apart
GREY, PALE = "#999999", "#DDDDDD"
WIDTH = 8.0  # inches, which a card shows in some 750 pixels: 8 points are then 10 pixels
DPI = 150
COLOURS = 64  # of a PNG's palette; it takes a third of the bytes
DRAWN_FROM = "Drawn from"  # a PNG's text
Z = 1.959964  # standard deviations, of which 95 % lie within


@dataclass(frozen=True)
class Picture:
    """A picture before it is drawn.

    Args:
        name: of its file.
        alt: what it shows, in words.
        values: what it is drawn from, as JSON holds it.
        by: the module whose `draw` makes a figure of them.
    """

    name: str
    alt: str
    values: Sequence[Any]
    by: ModuleType

    @property
    def drawn_from(self) -> str:
        """The sha256 of the values, and of the code that draws them: the module, and what it uses of this room."""
        named = (getattr(each, "__module__", None) or getattr(each, "__name__", "") for each in vars(self.by).values())
        room = {str(name) for name in named if str(name).startswith("zoo.pages.")}
        code = [inspect.getsource(sys.modules[name]) for name in sorted(room | {__name__, self.by.__name__})]
        return hashlib.sha256(json.dumps([self.values, *code], sort_keys=True).encode()).hexdigest()

    def png(self) -> bytes:
        """The picture.

        Raises:
            MissingExtra: matplotlib isn't installed.
        """
        from PIL import Image, PngImagePlugin

        drawn, out, text = io.BytesIO(), io.BytesIO(), PngImagePlugin.PngInfo()
        self.by.draw(*self.values).savefig(drawn, format="png", dpi=DPI)
        text.add_text(DRAWN_FROM, self.drawn_from)
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(out, "png", pnginfo=text, optimize=True)
        return out.getvalue()


def figure(height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Any, Any]:
    """An empty figure of a card's width, and its axes [rows, columns].

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    made = require("matplotlib.figure", "build").Figure(figsize=(WIDTH, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False, **more)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return made, axes


def interval(share: float, count: int) -> tuple[float, float]:
    """The ends of a share's 95 % interval, by Wilson.

    Formula: (p + z²/2n ± z·√(p(1 - p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        share: p, 0..1.
        count: n, of how many.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.

    >>> [round(end, 3) for end in interval(0.98, 50)]
    [0.895, 0.996]
    """
    middle, scale = share + Z * Z / (2 * count), 1 + Z * Z / count
    half = Z * (share * (1 - share) / count + Z * Z / (4 * count * count)) ** 0.5
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
