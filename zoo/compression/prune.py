"""Prune: channels and heads are cut, and the layers that read them are fitted to what stays.

1. statistic — moments of what each reader sees, one pass over calibration images;
2. criterion — units are removed one by one: those first whose loss the refitted readers feel least (`obs`), or in the
   order of E[x_j²]·‖W_j‖², the power that a unit adds to its reader's output (`activation`), or of ‖w_j‖², the weights
   that write it (`l2`). What the readers miss then, noise to signal, is the damage of every width;
3. edit — the budget is allocated over the groups by damage; units are cut, readers refitted.

Source: Hassibi, Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon" (NIPS 1992), equations 5
and 6, on the loss of a layer's own outputs and for blocks of weights; norms after Li et al., "Pruning Filters for
Efficient ConvNets" (ICLR 2017); refit as in `compression.refit`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Budget
from zoo.compression.allocation import allocate, widths
from zoo.compression.groups import Analysis, Group, analyse, narrow, select
from zoo.compression.refit import Moments, columns, moments, refit
from zoo.errors import BudgetError, DataError, UnknownName
from zoo.structure import base
from zoo.structure.plan import Narrow

Criterion = Literal["obs", "activation", "l2"]


@dataclass(frozen=True)
class Prune:
    """How channels are pruned.

    Args:
        criterion: how the units of a group are ranked.
        round_to: widths are multiples of it, which kernels like; groups of few units take an eighth of them.
        floor: the smallest share of a group's units; lowered where the budget can't be met otherwise.
        ridge: of the refit, as a share of the mean variance.
    """

    criterion: Criterion = "obs"
    round_to: int = 8
    floor: float = 0.125
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        if type(self.round_to) is not int or self.round_to < 1:
            raise BudgetError(f"prune: round_to is {self.round_to!r}, expected a whole number of at least 1")
        for name, least, most in (("floor", 0.0, 1.0), ("ridge", 1e-13, 1e12)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= most:
                raise BudgetError(f"prune: {name} is {value!r}, expected {least:g} to {most:g}")


def prune(
    model: nn.Module, batches: Sequence[Tensor], budget: Budget, how: Prune | None = None
) -> tuple[Narrow, dict[str, Tensor]]:
    """Prune a model to a budget.

    Args:
        model: dense, in eval mode; left as it was.
        batches: calibration images [B, C, H, W]; some hundred images are enough.
        budget: shares of its macs and params that stay.
        how: the declaration; None takes its defaults.

    Returns:
        The edit, and path → tensor of the narrowed model, on the CPU.

    Raises:
        BudgetError: the budget can't be met.
        DataError: the calibration images can't be used.
        StructureError: the model can't be exported.
    """
    how = how or Prune()
    if how.criterion not in get_args(Criterion):
        raise UnknownName(f"no criterion {how.criterion!r}, known are {', '.join(get_args(Criterion))}")
    if not batches or not len(batches[0]):
        raise DataError("calibration: no images; pass at least one batch")
    analysis = analyse(model, batches[0][:2])
    groups = analysis.groups
    if not groups:
        raise BudgetError(f"{type(model).__name__}: no channels that can be cut were found")
    readers = dict.fromkeys(path for group in groups for path in group.readers)
    seen = moments(model, readers, batches, analysis.normalised)
    allowed = _allowed(analysis, budget, how)
    held = base.tensors(model).items()  # on the CPU from here on, like the linear algebra, wherever the model is
    tensors = {path: tensor.detach().cpu() for path, tensor in held}
    found = [_eliminate(tensors, group, seen, how) for group in groups]
    damage = [{k: curve[k] for k in ks} for (_, curve), ks in zip(found, allowed, strict=True)]
    kept = allocate(analysis, damage, budget)
    units = [order[:k].sort().values for (order, _), k in zip(found, kept, strict=True)]
    cut = select(groups, units, tensors)
    for path, positions in _read_positions(groups, units).items():
        weight, bias = tensors[f"{path}.weight"], tensors.get(f"{path}.bias")
        fitted, shift, _ = refit(weight, seen[path], columns(weight, positions), how.ridge)
        outputs = _written_positions(groups, units, path, len(weight))
        narrowed = cut[f"{path}.weight"]
        cut[f"{path}.weight"] = fitted[outputs].reshape(narrowed.shape).to(narrowed.dtype)
        if bias is not None:
            cut[f"{path}.bias"] = (bias.double() + shift)[outputs].to(bias.dtype)
    return narrow(groups, kept), cut


def _allowed(analysis: Analysis, budget: Budget, how: Prune) -> list[list[int]]:
    """Widths that each group may take: the floor is lowered where it alone would miss the budget."""
    full = [group.units for group in analysis.groups]
    floor = how.floor
    while True:
        allowed = [widths(units, how.round_to, floor) for units in full]
        least = [w[0] for w in allowed]
        shares = [(analysis.macs, budget.macs), (analysis.params, 1.0 if budget.params is None else budget.params)]
        reached = all(analysis.total(c, least) <= 0.9 * share * analysis.total(c, full) for c, share in shares)
        if reached or floor < 1e-3:
            return allowed
        floor /= 2


def _reader_slices(group: Group, path: str) -> Tensor:
    """Positions of each unit among a reader's inputs [units, span]."""
    return next(piece.index for piece in group.slices if piece.tensor == f"{path}.weight" and piece.dim == 1)


def _eliminate(
    tensors: Mapping[str, Tensor], group: Group, seen: dict[str, Moments], how: Prune
) -> tuple[Tensor, list[float]]:
    """Remove the units of a group one by one and add up what the refitted readers miss.

    Of the units still kept, P = (C + λI)⁻¹ and the refitted W give the price of removing unit j, and what remains:

        price = tr(W_j P_jj⁻¹ W_jᵀ),   W ← W − W_j P_jj⁻¹ P_j,   P ← P − P_jᵀ P_jj⁻¹ P_j

    Returns:
        Units, the most important first, and the damage when the first k of them are kept, k = 0..units.
    """
    readers = [_Reader(tensors, group, path, seen[path], how.ridge) for path in group.readers]
    left = list(range(group.units)) if how.criterion == "obs" else _scores(tensors, group, seen, how).argsort().tolist()
    order: list[int] = []
    damage = [0.0]
    while left:
        candidates = left if how.criterion == "obs" else left[:1]
        prices = torch.stack([reader.prices(candidates) for reader in readers]).sum(0)
        order.append(left.pop(int(prices.argmin())))
        damage.append(damage[-1] + float(prices.min()))
        for reader in readers:
            reader.remove(order[-1])
    return torch.tensor(order[::-1]), damage[::-1]


class _Reader:
    """One reader of a group while units are removed; the symbols of `_eliminate`."""

    def __init__(self, tensors: Mapping[str, Tensor], group: Group, path: str, seen: Moments, ridge: float) -> None:
        W, C = tensors[f"{path}.weight"].detach(), seen.covariance
        self.of = torch.stack([columns(W, unit) for unit in _reader_slices(group, path)])
        self.W = W.flatten(1).to(torch.float64, copy=True)
        self.P = torch.linalg.inv(C + ridge * C.diagonal().mean().clamp(min=1e-12) * torch.eye(len(C), dtype=C.dtype))
        self.signal = ((self.W @ C) * self.W).sum().clamp(min=1e-12)

    def prices(self, units: list[int]) -> Tensor:
        at = self.of[units]
        W_j = self.W[:, at].permute(1, 2, 0)
        P_jj = self.P[at[:, :, None], at[:, None, :]]
        missed: Tensor = (W_j * torch.linalg.solve(P_jj, W_j)).sum((1, 2))
        return missed / self.signal

    def remove(self, unit: int) -> None:
        at = self.of[unit]
        gain = torch.linalg.solve(self.P[at][:, at], self.P[at])
        self.W -= self.W[:, at] @ gain
        self.P -= self.P[:, at] @ gain


def _scores(tensors: Mapping[str, Tensor], group: Group, seen: dict[str, Moments], how: Prune) -> Tensor:
    """Importance of each unit by itself [units]."""
    score = torch.zeros(group.units, dtype=torch.float64)
    if how.criterion == "activation":
        for path in group.readers:
            weight = tensors[f"{path}.weight"]
            power = seen[path].power * weight.flatten(1).double().square().sum(0)
            score += torch.stack([power[columns(weight, unit)].sum() for unit in _reader_slices(group, path)])
    else:
        for piece in group.slices:
            if piece.dim == 0 and piece.tensor.rpartition(".")[0] in group.writers and piece.tensor.endswith("weight"):
                rows = tensors[piece.tensor].flatten(1).double().square().sum(1)
                score += rows[piece.index].sum(1)
    return score


def _read_positions(groups: Sequence[Group], units: Sequence[Tensor]) -> dict[str, Tensor]:
    """Reader → positions of its inputs that stay."""
    return {
        path: _reader_slices(group, path)[kept].flatten().sort().values
        for group, kept in zip(groups, units, strict=True)
        for path in group.readers
        if len(kept) < group.units
    }


def _written_positions(groups: Sequence[Group], units: Sequence[Tensor], path: str, outputs: int) -> Tensor:
    """Positions of a layer's outputs that stay."""
    for group, kept in zip(groups, units, strict=True):
        for piece in group.slices:
            if piece.tensor == f"{path}.weight" and piece.dim == 0:
                return piece.positions(kept)
    return torch.arange(outputs)
