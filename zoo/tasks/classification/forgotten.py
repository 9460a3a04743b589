"""What a compressed model forgets: the classes of which it knows significantly fewer images than its reference did.

Both answer the same images, so that of each class only those count on which one is right and the other wrong. Were the
two as good as one another, each of these would be lost or won with probability 1/2 (McNemar's exact test); of many
classes some would seem lost by chance, which Holm's correction allows for.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

LEVEL = 0.05  # the probability that any class is called forgotten by chance
MOST = 30  # classes, those that lost most
OTHERS = 5  # classes that one is taken for, those it is taken for most


def forgotten(labels: Tensor, before: Tensor, after: Tensor) -> list[dict[str, Any]]:
    """The classes that lost significantly, those first that lost the largest share.

    Formula: p = 2^-(b + c) · Σ_{k ≥ b} C(b + c, k) with b images lost and c won; Holm: the i-th smallest p of m classes
    counts as long as p ≤ 0.05 / (m - i + 1).

    Args:
        labels: right classes [B], none below 0.
        before: the reference's answers [B].
        after: the model's [B].

    Returns:
        Of each `class`, its `images`, how many the reference knew (`before`), how many of them were `lost` and how many
        others `won`, and what the lost ones are `taken_for`: pairs of a class and how many.

    Source: McNemar, Psychometrika 12, 1947; Holm, Scandinavian Journal of Statistics 6, 1979. That compression falls on
    a few classes: Hooker et al., What Do Compressed Deep Neural Networks Forget?, https://arxiv.org/abs/1911.05248.
    """
    size = int(max(each.max() for each in (labels, before, after))) + 1
    images = labels.bincount(minlength=size).tolist()
    knew = labels[before == labels].bincount(minlength=size).tolist()
    gone, come = (before == labels) & (after != labels), (before != labels) & (after == labels)
    lost, won = (labels[each].bincount(minlength=size).tolist() for each in (gone, come))
    found = []
    for number in _significant([chance(b, c) for b, c, count in zip(lost, won, images, strict=True) if count]):
        name = [each for each, count in enumerate(images) if count][number]
        others = after[gone & (labels == name)].bincount(minlength=size)
        most = others.argsort(descending=True, stable=True)[:OTHERS].tolist()
        pairs = [(other, int(others[other])) for other in most if others[other]]
        row = {"class": name, "images": images[name], "before": knew[name], "lost": lost[name], "won": won[name]}
        found.append({**row, "taken_for": pairs})
    return sorted(found, key=lambda row: (row["won"] - row["lost"]) / row["images"])[:MOST]


def chance(lost: int, won: int) -> float:
    """The probability of losing as many or more of as many that changed, if losing and winning were as likely.

    >>> chance(5, 0), chance(2, 1)
    (0.03125, 0.5)
    """
    changed = lost + won
    worse = sum(math.comb(changed, k) for k in range(lost, changed + 1))
    return worse / (1 << changed)


def _significant(chances: Sequence[float]) -> list[int]:
    """Holm's: which of them aren't by chance, with a probability of `LEVEL` that any is."""
    order = sorted(range(len(chances)), key=lambda number: chances[number])
    stop = next((i for i, number in enumerate(order) if chances[number] > LEVEL / (len(order) - i)), len(order))
    return order[:stop]
