"""Ids: a name for each channel of each tensor; channels that must be cut together get the same name in the end.

The rules of `rules` only write down which ids are one and which are frozen. `resolve` settles it at once: the
connected components of that relation, by the smallest id of each.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Vector = Tensor | None
"""Ids along one dimension [n]; 0 among them never goes; None where nothing of the dimension can be cut."""
Axes = list[Vector]
"""One vector for each dimension of a tensor."""


class NotUnderstood(Exception):
    """An operation has arguments that its rule doesn't know: what it reads is frozen. Other errors are mistakes."""


@dataclass
class Ids:
    """Ids as they are given out, and what is said about them."""

    count: int = 1  # 0 is frozen
    joined: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)

    def fresh(self, size: int) -> Vector:
        """New ids for a dimension; a dimension of one has nothing that could be cut."""
        if size < 2:
            return None
        self.count += size
        return torch.arange(self.count - size, self.count)

    def join(self, a: Vector, b: Vector, reason: str) -> Vector:
        """Say that two dimensions are cut at the same positions; what meets a dimension that can't be cut is frozen."""
        if a is None or b is None or len(a) != len(b):
            self.freeze(a, reason)
            self.freeze(b, reason)
            return None
        self.joined.append((a, b))
        return a

    def freeze(self, vector: Vector, reason: str) -> None:
        """Say that nothing of a dimension can be cut, and why."""
        if vector is not None:
            self.frozen.append((vector, reason))

    def resolve(self) -> tuple[Tensor, dict[int, str]]:
        """Settle what is one and what is frozen.

        Returns:
            Root of each id [count], 0 where it is frozen, and the first reason of each root that is frozen.
        """
        roots = torch.arange(self.count)
        if self.joined:
            a, b = (torch.cat(side) for side in zip(*self.joined, strict=True))
            while True:
                low = torch.minimum(roots[a], roots[b])
                new = roots.scatter_reduce(0, roots[a], low, "amin").scatter_reduce(0, roots[b], low, "amin")
                while not torch.equal(new, new[new]):
                    new = new[new]
                if torch.equal(new, roots):
                    break
                roots = new
        reasons = {0: "joined with channels that stay"}
        for vector, reason in reversed(self.frozen):
            reasons.update(dict.fromkeys(roots[vector].unique().tolist(), reason))
        return roots, reasons
