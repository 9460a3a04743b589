"""Allocation: one budget shared out over layers, a rank for each or none, so that the least damage is done.

    min Σ_l D_l(k_l)   subject to   macs(k) ≤ share · macs,   params(k) ≤ share · params

D_l(k) is the damage of rank k, 0 where layer l stays dense. At a price λ of a layer's cost each layer takes the option
of least D + λ cost, λ is found by bisection, and what the last step freed too much is given back where it heals most.
Where params are a target too, cost is a mixture of the two shares, and the best of some mixtures is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Budget
from zoo.compression.low_rank.fisher import Spectrum
from zoo.errors import BudgetError


@dataclass(frozen=True)
class Choice:
    """What one layer may become.

    Args:
        ranks: rising; 0 stands for dense.
        damage: of each rank, in nats.
        macs: of each rank, for one image.
        params: of each rank.
    """

    ranks: Sequence[int]
    damage: Tensor
    macs: Tensor
    params: Tensor


def choice(layer: nn.Linear | nn.Conv2d, spectrum: Spectrum, round_to: int) -> Choice:
    """The ranks that make a layer smaller, and dense.

    Args:
        layer: m outputs, n inputs, a kernel of k·k.
        spectrum: its spectrum.
        round_to: ranks are multiples of it.

    Returns:
        Ranks with (k·k·n + m)·rank < k·k·n·m, and dense, which costs no damage.
    """
    ranks = [k for k in _ranks(layer, round_to) if k < len(spectrum.values)]
    return _choice(layer, ranks, spectrum.loss[ranks], spectrum.positions)


def prior(layer: nn.Linear | nn.Conv2d, positions: int, round_to: int) -> Choice:
    """The same where nothing was measured: of each layer −log of the share that stays is paid for with all its macs.

    Args:
        layer: m outputs, n inputs, a kernel of k·k.
        positions: of its output, in one image.
        round_to: ranks are multiples of it.
    """
    ranks, whole = _ranks(layer, round_to), layer.weight.numel()
    shares = torch.tensor(ranks, dtype=torch.float64) * (len(layer.weight) + whole // len(layer.weight)) / whole
    return _choice(layer, ranks, -whole * positions * shares.log(), positions)


def _ranks(layer: nn.Linear | nn.Conv2d, round_to: int) -> list[int]:
    m, n = layer.weight.shape[0], layer.weight[0].numel()
    step = min(round_to, max(1, min(m, n) // 8))
    return [k for k in range(step, min(m, n) + 1, step) if (m + n) * k < m * n]


def _choice(layer: nn.Linear | nn.Conv2d, ranks: Sequence[int], damage: Tensor, positions: float) -> Choice:
    """Those ranks, and dense."""
    m, n = layer.weight.shape[0], layer.weight[0].numel()
    params = torch.tensor([*((m + n) * k for k in ranks), m * n], dtype=torch.float64)
    return Choice([*ranks, 0], torch.cat([damage, torch.zeros(1, dtype=torch.float64)]), params * positions, params)


def allocate_ranks(choices: Mapping[str, Choice], macs: int, params: int, budget: Budget) -> dict[str, int]:
    """Choose the ranks that do the least damage within a budget.

    Args:
        choices: of each layer.
        macs: of the whole model.
        params: of the whole model.
        budget: shares that stay.

    Returns:
        Path → rank, 0 where the layer stays dense.

    Raises:
        BudgetError: with every layer at its smallest rank the model is still over the budget.
    """
    targets = [("macs", macs, budget.macs), *([("params", params, budget.params)] if budget.params is not None else [])]
    shares = {
        path: torch.stack([getattr(c, what) / total for what, total, _ in targets]) for path, c in choices.items()
    }
    over = torch.tensor([1 - share for *_, share in targets], dtype=torch.float64)
    needed = over - 1e-12  # to be freed of each target
    most = sum((s[:, -1] - s.min(1).values for s in shares.values()), torch.zeros(len(targets), dtype=torch.float64))
    for (what, _, share), free in zip(targets, most.tolist(), strict=True):
        if free < 1 - share - 1e-12:
            raise BudgetError(
                f"budget of {share:g} of the {what} can't be met: ranks can be cut to {1 - free:.3f} at the least; ask "
                f"for more, lower round_to, or prune first"
            )
    options = [_within(choices, shares, needed, weights) for weights in _mixtures(len(targets))]
    _, picked = min((option for option in options if option is not None), key=lambda option: option[0])
    return {path: c.ranks[i] for (path, c), i in zip(choices.items(), picked, strict=True)}


def _mixtures(targets: int) -> list[Tensor]:
    if targets == 1:
        return [torch.ones(1, dtype=torch.float64)]
    return [torch.tensor([i / 16, 1 - i / 16], dtype=torch.float64) for i in range(17)]


def _within(
    choices: Mapping[str, Choice], shares: Mapping[str, Tensor], needed: Tensor, weights: Tensor
) -> tuple[float, list[int]] | None:
    """Damage and option of each layer for one mixture of the targets."""
    costs = [weights @ s for s in shares.values()]
    damages = [c.damage for c in choices.values()]

    def at(price: float) -> list[int]:
        return [int((d + price * cost).argmin()) for d, cost in zip(damages, costs, strict=True)]

    def freed(picked: Sequence[int]) -> Tensor:
        each = [s[:, -1] - s[:, i] for s, i in zip(shares.values(), picked, strict=True)]
        return sum(each, torch.zeros_like(needed))

    low, high = 1e-12, 1e12  # nats for the whole model's cost
    if not bool((freed(at(high)) >= needed).all()):
        return None
    picked = [len(d) - 1 for d in damages]
    if not bool((freed(picked) >= needed).all()):
        for _ in range(80):
            price = (low * high) ** 0.5
            low, high = (low, price) if bool((freed(at(price)) >= needed).all()) else (price, high)
        picked = at(high)
    return _give_back(picked, damages, shares, needed - freed(picked))


def _give_back(
    picked: list[int], damages: list[Tensor], shares: Mapping[str, Tensor], short: Tensor
) -> tuple[float, list[int]]:
    """Spend what the last step freed too much where it heals most for its cost; `short` is at most 0."""
    options = list(shares.values())
    while True:
        best, chosen = 0.0, None
        for g, (damage, s) in enumerate(zip(damages, options, strict=True)):
            spent = s - s[:, picked[g] : picked[g] + 1]
            gain = damage[picked[g]] - damage
            gain[(short[:, None] + spent > 0).any(0)] = 0
            values = gain / spent.amax(0).clamp(min=1e-15)
            i = int(values.argmax())
            if float(values[i]) > best:
                best, chosen = float(values[i]), (g, i)
        if chosen is None:
            return float(sum(float(d[i]) for d, i in zip(damages, picked, strict=True))), picked
        g, i = chosen
        short = short + options[g][:, i] - options[g][:, picked[g]]
        picked[g] = i
