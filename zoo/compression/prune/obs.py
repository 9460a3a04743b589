"""Elimination: units are removed from their readers, and what the refitted readers miss is added up.

Of the units still kept, P = (C + diag(λ))⁻¹ and the refitted W, of each output over its deviation, give the
price of removing units B, and what remains:

    price = tr(W_B P_BB⁻¹ W_Bᵀ),   W ← W − W_B P_BB⁻¹ P_B,   P ← P − P_Bᵀ P_BB⁻¹ P_B

With P_BB = L Lᵀ the price is ‖L⁻¹ W_Bᵀ‖², and its rows are what each unit of B adds when they go one after another: the
damage of every width is exact however many go at once.

Source: Hassibi, Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon" (NIPS 1992), equations 5
and 6, on the loss of a layer's own outputs and for blocks of weights.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from zoo.compression.channels.groups import Group
from zoo.compression.prune.refit import Moments, columns, ridged, weighted
from zoo.errors import DataError

EXACT = 512  # inputs of the widest reader up to which units are priced anew after each
SHARE = 32  # above, this part of those left goes at once
AT_ONCE = 32  # units that go at once where the order is given
JUDGED = (0.9, 0.75, 0.5, 0.25, 0.125)  # shares of the units left at which images held back judge


def eliminate(
    tensors: Mapping[str, Tensor],
    group: Group,
    seen: Mapping[str, Moments],
    ridge: float,
    score: Tensor | None = None,
    held: Mapping[str, Moments] = MappingProxyType({}),
) -> tuple[Tensor, list[float], list[tuple[float, float]]]:
    """Remove the units of a group and add up what the refitted readers miss.

    Args:
        tensors: path → tensor of the dense model, on the CPU.
        group: whose units.
        seen: moments of its readers.
        ridge: λ as a share of C's diagonal.
        score: importance of each unit [units]; None removes those of the lowest price.
        held: moments of its readers for images held back.

    Returns:
        Units, the most important first; the noise-to-signal ratio, summed over the readers, when the first k of them
        are kept, k = 0..units; and at some of these, where images are held back, that ratio and theirs.

    Raises:
        DataError: what a reader sees is singular in spite of the ridge.
    """
    readers = {path: _Reader(tensors, group, path, seen[path], ridge) for path in group.readers}
    widest = max(len(reader.P) for reader in readers.values())
    left = list(range(group.units)) if score is None else score.argsort(stable=True).tolist()
    order: list[int] = []
    damage, judged = [torch.zeros(1, dtype=torch.float64)], list[tuple[float, float]]()
    looks = [share * group.units for share in (JUDGED if held else ())]
    while left:
        if score is None:
            prices = torch.stack([reader.prices(left) for reader in readers.values()]).sum(0)
            count = 1 if widest <= EXACT else max(1, len(left) // SHARE)
            gone = [left[i] for i in prices.argsort(stable=True)[:count].tolist()]
        else:
            gone = left[:AT_ONCE]
        damage.append(damage[-1][-1] + torch.stack([r.remove(gone) for r in readers.values()]).sum(0).cumsum(0))
        order += gone
        removed = set(gone)
        left = [unit for unit in left if unit not in removed]
        if looks and len(left) <= looks[0]:
            looks = [look for look in looks if look < len(left)]
            missed = sum(float(reader.missed(held[path])) for path, reader in readers.items())
            judged.append((float(damage[-1][-1]), missed))
    return torch.tensor(order[::-1]), torch.cat(damage).flip(0).tolist(), judged


def inputs(group: Group, path: str) -> Tensor:
    """Positions of each unit among a reader's inputs [units, span]."""
    pieces = [piece.index for piece in group.slices if piece.tensor == f"{path}.weight" and piece.dim == 1]
    return torch.cat(pieces, 1)


def _cholesky(A: Tensor) -> Tensor:
    L, failed = torch.linalg.cholesky_ex(A)
    if failed.any():
        raise DataError("prune: the covariance of the calibration images is singular; raise ridge")
    return L  # type: ignore[no-any-return]


class _Reader:
    """One reader of a group while units are removed; the symbols are the module's."""

    def __init__(self, tensors: Mapping[str, Tensor], group: Group, path: str, seen: Moments, ridge: float) -> None:
        weight = tensors[f"{path}.weight"].detach()
        W, self.mean = weight.flatten(1).double(), seen.mean
        self.at = torch.stack([columns(weight, unit) for unit in inputs(group, path)])  # of each unit [units, s]
        weights = weighted(W, seen)
        self.dense = W * weights.sqrt()[:, None]
        self.W = self.dense.clone()
        self.columns = torch.arange(W.shape[1])  # of W, those that are left
        self.P = torch.cholesky_inverse(_cholesky(ridged(seen, ridge)))
        self.signal = weights.count_nonzero().clamp(min=1)
        self.gone = torch.zeros(W.shape[1], dtype=torch.bool)

    def prices(self, units: Sequence[int]) -> Tensor:
        at = self.at[list(units)]
        if at.shape[1] == 1:
            missed: Tensor = self.W[:, at[:, 0]].square().sum(0) / self.P.diagonal()[at[:, 0]]
        else:
            W_j = self.W[:, at].permute(1, 2, 0)
            L = _cholesky(self.P[at[:, :, None], at[:, None, :]])
            missed = torch.linalg.solve_triangular(L, W_j, upper=False).square().sum((1, 2))
        return missed / self.signal

    def remove(self, units: Sequence[int]) -> Tensor:
        """Remove units in this order; the price of each."""
        B = self.at[list(units)].flatten()
        P_B, W_B = self.P[B], self.W[:, B]
        L = _cholesky(P_B[:, B])
        prices: Tensor = torch.linalg.solve_triangular(L, W_B.T, upper=False).square().sum(1)
        gain = torch.cholesky_solve(P_B, L)
        self.W.addmm_(W_B, gain, alpha=-1)
        self.P.addmm_(P_B.T, gain, alpha=-1)
        self.gone[B] = True
        if self.gone.sum() > len(self.P) // 4:
            self._compact()
        return prices.view(len(units), -1).sum(1) / self.signal

    def missed(self, held: Moments) -> Tensor:
        """What it misses on other images: tr(ΔW E[(x−μ)(x−μ)ᵀ] ΔWᵀ), by its own mean."""
        change, off = -self.dense, held.mean - self.mean
        change[:, self.columns] += self.W
        noise = (change @ held.covariance.double() * change).sum() + (change @ off).square().sum()
        return noise / self.signal

    def _compact(self) -> None:
        """Forget the columns of units that are gone."""
        kept = (~self.gone).nonzero()[:, 0]
        self.columns = self.columns[kept]
        self.W, self.P = self.W[:, kept], self.P[kept][:, kept]
        place = torch.full((len(self.gone),), -1)
        place[kept] = torch.arange(len(kept))
        self.at, self.gone = place[self.at], torch.zeros(len(kept), dtype=torch.bool)
