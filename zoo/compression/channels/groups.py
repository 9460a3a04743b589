"""Groups: the channels of a model that must be cut together, and what they cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from zoo.compression.channels.cutting import Kept, Traced
from zoo.structure.plan import Heads, Narrow, narrowing
from zoo.structure.tensors import tensors_of


@dataclass(frozen=True, eq=False)
class Slice:
    """Where a group's units lie in one tensor.

    Args:
        tensor: its path.
        dim: the dimension.
        index: the positions in it of each unit [units, span]; a head has many, thrice as many where q, k, v are one.
        groups: of the weight of a grouped convolution, how many groups it has and how many channels each of them reads.
        whole: whether its groups are cut as a whole.
        written: whether they are the outputs of the layer whose weight it is, which in transposed ones lie second.
    """

    tensor: str
    dim: int
    index: Tensor
    groups: tuple[int, int] | None = None
    whole: bool = False
    written: bool = False


@dataclass(frozen=True)
class Group:
    """Channels that are cut together.

    Args:
        name: the path of the layer that opens them; of the attention module for heads.
        units: how many there are to choose from.
        slices: where they lie.
        writers: paths of the layers whose outputs they are.
        readers: paths of the layers that mix them.
        depthwise: paths of the convolutions between that take each channel by itself.
        head_dim: width of one head where the units are heads, else None.
        residual: whether several layers write them into a sum.
        unfitted: paths of layers that mix them and can't be fitted to fewer.
    """

    name: str
    units: int
    slices: tuple[Slice, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    depthwise: tuple[str, ...] = ()
    head_dim: int | None = None
    residual: bool = False
    unfitted: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Where unit i lies, tensor by tensor."""
        lines = [f"{self.name}: {self.units} units, {self.kind}"]
        for piece in self.slices:
            span = piece.index.shape[1]
            lines.append(f"  {piece.tensor}[{':, ' * piece.dim}i]" + (f", {span} positions" if span > 1 else ""))
        return "\n".join(lines)

    @property
    def kind(self) -> str:
        """`heads of` their width, `residual` streams, or `inner` widths."""
        return f"heads of {self.head_dim}" if self.head_dim else "residual" if self.residual else "inner"


@dataclass(frozen=True)
class Cost:
    """A count that shrinks with its groups: `count` · ∏ over axes of the share of the axis that stays.

    Args:
        count: of the dense model, for one image.
        axes: of each dimension that can be cut, group (its index) → the share of the dimension that it takes; several
            where tensors were joined end to end. What no group takes stays.
    """

    count: int
    axes: tuple[Mapping[int, float], ...]


@dataclass(frozen=True)
class Analysis:
    """What can be cut in a model: the groups, and what each multiply-accumulate and parameter depends on.

    Args:
        groups: in the order of the forward pass.
        macs: what one image costs.
        params: what there is.
        normalised: layer whose outputs a batch norm alone reads → the norm's running mean.
        frozen: path of a layer none of whose outputs can be cut → why.
        traced: the program and its ids.
        roots: ids of each group's units [units].
    """

    groups: tuple[Group, ...]
    macs: tuple[Cost, ...]
    params: tuple[Cost, ...]
    normalised: Mapping[str, str] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    traced: Traced | None = None
    roots: tuple[Tensor, ...] = ()

    def __str__(self) -> str:
        """A table of the groups, and what is frozen."""
        head = ("group", "units", "kind", "writers", "readers")
        rows = [
            (group.name, str(group.units), group.kind, _listed(group.writers), _listed(group.readers + group.unfitted))
            for group in self.groups
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
        return "\n".join(lines + [f"{path} stays: {reason}" for path, reason in self.frozen.items()])

    def total(self, costs: Iterable[Cost], kept: Sequence[int]) -> float:
        """Add costs up for so many units kept of each group."""
        cut = [1 - k / group.units for k, group in zip(kept, self.groups, strict=True)]
        return sum(
            cost.count * prod(1 - sum(share * cut[g] for g, share in axis.items()) for axis in cost.axes)
            for cost in costs
        )

    @property
    def every(self) -> list[Tensor]:
        """Of each group, all its units."""
        return [torch.arange(group.units) for group in self.groups]

    def kept(self, units: Sequence[Tensor]) -> Kept:
        """What stays of every value and every tensor.

        Args:
            units: of each group, indices of the units kept [k].
        """
        assert self.traced is not None
        gone = [torch.zeros(0, dtype=torch.long)]
        for roots, stay in zip(self.roots, units, strict=True):
            gone.append(roots[torch.ones(len(roots), dtype=torch.bool).index_fill(0, stay, False)])
        return Kept(self.traced, torch.cat(gone))


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def narrow(model: nn.Module, analysis: Analysis, units: Sequence[Tensor]) -> Narrow:
    """The edit that keeps so many units of each group.

    Args:
        model: that was analysed.
        analysis: of the model.
        units: of each group, those kept [k]; which they are makes no difference.
    """
    kept = analysis.kept(units)
    axes, held = kept.traced.held(), tensors_of(model)
    shapes: dict[str, list[int]] = {}
    heads: dict[str, Heads] = {}
    fewer: dict[str, int] = {}
    for group, stay in zip(analysis.groups, units, strict=True):
        if len(stay) == group.units:
            continue
        if group.head_dim is not None:
            heads[group.name] = Heads(len(stay), group.head_dim)
            continue
        for piece in group.slices:
            shape = shapes.setdefault(piece.tensor, list(held[piece.tensor].shape))
            shape[piece.dim] = kept.size(axes[piece.tensor][piece.dim], shape[piece.dim])
            if piece.whole and piece.groups is not None and piece.groups[1] > 1:
                layer = piece.tensor.rpartition(".")[0]
                fewer[layer] = piece.groups[0] * shape[piece.dim] // len(held[piece.tensor])
    return narrowing(model, shapes, heads, fewer)
