"""What compression made a model forget: the classes that lost most, before and after, and what they are taken for."""

from collections.abc import Sequence
from typing import Any

from zoo.catalog.report import Forgotten
from zoo.pages import style
from zoo.printable import printable

MOST = 15  # classes of a picture
LONGEST = 48  # letters of what lost images are taken for, or nothing would be left of the picture
Lost = tuple[str, int, int, int, Sequence[tuple[str, int]]]
"""A class, its images, how many the reference knew, how many the model knows, and what it is taken for how often."""


def lost(forgotten: Sequence[Forgotten]) -> list[Lost]:
    """The classes of a picture, those first that lost the largest share."""
    return [
        (each.name, each.images, each.before, each.before - each.lost + each.won, [*each.taken_for.items()])
        for each in forgotten[:MOST]
    ]


def rows(forgotten: Sequence[Forgotten]) -> list[list[str]]:
    """The same as a table's rows: class, its images, known before and after, and what the lost ones are taken for."""
    found = []
    for name, images, before, after, taken_for in lost(forgotten):
        shares = [f"{100 * known / images:.1f} %" for known in (before, after)]
        found.append([name, f"{images:,}", *shares, ", ".join(f"{count} as {other}" for other, count in taken_for)])
    return found


def alt(classes: Sequence[Lost], count: int) -> str:
    """The picture in words.

    Args:
        classes: from `lost`.
        count: of all classes that are forgotten.
    """
    name, images, before, after, _ = classes[0]
    most = f"class {name} lost most, from {before} to {after} of {images} images"
    if count == 1:
        return f"Share of its images that are known of the class that is forgotten: {most}."
    which = f"the {len(classes)} of {count} forgotten classes that lost most" if count > MOST else f"{count} classes"
    return f"Share of their images that are known before and after compression, of {which}; {most}."


def taken(taken_for: Sequence[tuple[str, int]]) -> str:
    """What lost images are taken for, as much of it as there is room for.

    >>> taken([("tabby", 9), ("Egyptian cat", 4), ("tiger cat", 2), ("lynx, catamount", 1)])
    '9 as tabby, 4 as Egyptian cat, 2 as tiger cat'
    """
    words = [f"{count} as {printable(other, 30)}" for other, count in taken_for[:3]]
    while len(", ".join(words)) > LONGEST:
        words.pop()
    return ", ".join(words)


def draw(classes: Sequence[Lost]) -> Any:
    """A figure of the classes that lost most.

    Args:
        classes: from `lost`.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    figure, axes = style.figure(1.1 + 0.3 * len(classes))
    axis, places = axes[0, 0], range(len(classes))
    was = [100 * before / images for _, images, before, _, _ in classes]
    now = [100 * after / images for _, images, _, after, _ in classes]
    axis.hlines(places, was, now, color=style.GREY, lw=2, zorder=1)
    axis.scatter(was, places, s=50, marker="s", color=style.DENSE, label="before")
    axis.scatter(now, places, s=50, color=style.COMPRESSED, label="compressed")
    for place, (_, _, _, _, taken_for) in enumerate(classes):
        axis.text(1.02, place, taken(taken_for), transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    axis.text(1.02, -0.8, "lost images, taken", transform=axis.get_yaxis_transform(), fontsize=8, style="italic")
    axis.set_yticks(places, [printable(name, 30) for name, *_ in classes], fontsize=8)
    axis.set(ylim=(len(classes) - 0.4, -1), xlim=(-2, 102))
    axis.set_xlabel("images of the class that are known, %", fontsize=9)
    axis.grid(axis="x", alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    return figure
