"""Refit: the layers that read cut channels make up for them by least squares.

A reader computes y = W x + b. Of x only the columns S stay; the least-squares readers of calibration data are

    W' = W C[:,S] (C[S,S] + diag(λ))⁻¹,    b' = b + W μ − W' μ[S],    C = E[(x−μ)(x−μ)ᵀ]

and what they can't make up for, the diagonal of W C Wᵀ − W' C[S,:] Wᵀ over that of W C Wᵀ, in the mean over outputs is
the noise-to-signal ratio at the reader. No scale of an input or an output makes a difference: a norm's may stand in the
layer before or in itself. A convolution is a linear layer on its patches. Where nothing can take a shift of the mean
up, neither a bias nor a batch norm that alone reads the layer, μ = 0.

Source: the closed form of ThiNet (Luo et al., ICCV 2017) and of He et al., "Channel Pruning for Accelerating Very Deep
Neural Networks" (ICCV 2017), section 3.1, equation 4.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.compression.activations import Draw, observe, patches, portions, wide
from zoo.errors import DataError

ROUNDING = 20.0  # times C's precision and the root of its size: twice what its eigenvalues were seen to be off
MAX_BYTES = 1 << 30  # of second moments held at a time


@dataclass(frozen=True)
class Moments:
    """First and second moments of what a layer reads.

    Args:
        mean: μ [n] in double precision, zero where the layer may not shift it.
        covariance: C [n, n].
        rows: how many were looked at.
    """

    mean: Tensor
    covariance: Tensor
    rows: int

    @property
    def power(self) -> Tensor:
        """E[x²] [n], in double precision."""
        return self.covariance.diagonal().double() + self.mean.square()


@dataclass(frozen=True)
class Parts:
    """Moments of one reader.

    Args:
        fit: of the images that it is fitted to while widths are chosen.
        held: of those held back, which tell what the fit is worth.
    """

    fit: Moments
    held: Moments

    @property
    def whole(self) -> Moments:
        """Of all images."""
        rows = self.fit.rows + self.held.rows
        share, between = self.fit.rows / rows, self.fit.mean - self.held.mean
        mean = self.held.mean + share * between
        covariance = torch.lerp(self.held.covariance, self.fit.covariance, share)
        return Moments(mean, covariance.addr_(*[between.to(covariance)] * 2, alpha=share * (1 - share)), rows)


def moments(
    model: nn.Module, readers: Iterable[str], batches: Sequence[Tensor], normalised: Collection[str] = ()
) -> dict[str, Moments]:
    """Collect the moments of the inputs of layers in one pass over calibration data.

    Args:
        model: in eval mode.
        readers: paths of linear layers and convolutions.
        batches: images [B, C, H, W].
        normalised: paths of layers whose outputs a batch norm takes, which takes a shift of their mean up.

    Returns:
        Path → moments, on the CPU, C in the model's precision and in single at least.

    Raises:
        DataError: there are no images, or an activation isn't finite.
    """
    layers = {path: model.get_submodule(path) for path in readers}
    shifted = {path for path, layer in layers.items() if path in normalised or getattr(layer, "bias", None) is not None}
    origin, first, second = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    rows = dict[str, int]()

    def read(path: str, layer: nn.Module, x: Tensor, draw: Draw) -> None:
        x = patches(layer, wide(x), draw)
        if path not in rows:  # sums about what is near the mean stay exact when μμᵀ is taken off, of a constant 0
            near = torch.where((x == x[0]).all(0), x[0], x.mean(0))
            origin[path] = near if path in shifted else torch.zeros_like(near)
            first[path], second[path] = torch.zeros_like(x[0], dtype=torch.double), x.new_zeros(2 * x.shape[1:])
        if path in shifted:
            x = x - origin[path]
            first[path] += x.sum(0, dtype=torch.double)
        second[path].addmm_(x.T, x)
        rows[path] = rows.get(path, 0) + len(x)

    with torch.no_grad():
        observe(model, layers, batches, before=read)
    if layers and not rows:
        raise DataError("calibration: no images; pass at least one batch")
    return {path: _moments(path, origin[path], first[path], second[path], rows[path]) for path in rows}


class Seen:
    """Moments of many readers, held together where they fit into `MAX_BYTES`, else collected anew for those asked for.

    Args:
        model: in eval mode.
        readers: paths of linear layers and convolutions.
        fit: images [B, C, H, W] that readers are fitted to.
        held: those held back.
        normalised: as in `moments`.
    """

    def __init__(
        self,
        model: nn.Module,
        readers: Iterable[str],
        fit: Sequence[Tensor],
        held: Sequence[Tensor],
        normalised: Collection[str] = (),
    ) -> None:
        self.model, self.fit, self.held, self.normalised = model, fit, held, normalised
        self.bytes = {path: 2 * 4 * model.get_parameter(f"{path}.weight")[0].numel() ** 2 for path in readers}
        self.known: dict[str, Parts] = {}

    def of(self, readers: Iterable[str]) -> dict[str, Parts]:
        """Moments of some of the readers."""
        asked = list(dict.fromkeys(readers))
        if not all(path in self.known for path in asked):
            wanted = self.bytes if sum(self.bytes.values()) <= MAX_BYTES else asked
            self.known = {}
            fit, held = (moments(self.model, wanted, batches, self.normalised) for batches in (self.fit, self.held))
            self.known = {path: Parts(fit[path], held[path]) for path in fit}
        return {path: self.known[path] for path in asked}

    def portions(self, needs: Sequence[Sequence[str]]) -> Iterator[tuple[slice, dict[str, Parts]]]:
        """Needs in turn, as many at a time as fit: which they are, and the moments of their readers."""
        for portion in portions(needs, self.bytes, MAX_BYTES):
            yield portion, self.of(path for need in needs[portion] for path in need)


def _moments(path: str, origin: Tensor, first: Tensor, second: Tensor, rows: int) -> Moments:
    """Of sums over rows, about an origin."""
    if not torch.isfinite(second).all():
        raise DataError(f"calibration: the input of {path} isn't finite; check the images and the model")
    off = first / rows
    C = second.div_(rows).addr_(off.to(second), off.to(second), alpha=-1)
    return Moments((origin + off).cpu(), C.cpu(), rows)


def ridged(seen: Moments, ridge: float) -> Tensor:
    """C + diag(λ), in double precision: positive definite, λ of each input the ridge, and no less than C's rounding.

    Each input has a λ of its own, so that the scale of none makes a difference.

    Args:
        seen: moments of the inputs.
        ridge: share of C's diagonal.

    Returns:
        C + diag(λ) [n, n].
    """
    C = seen.covariance.double()
    least = (max(ridge, rounding(seen)) * C.diagonal()).clamp(min=1e-30)
    C = C.clone() if C is seen.covariance else C
    C.diagonal().add_(least)
    return C


def rounding(seen: Moments) -> float:
    """Share of C's diagonal by which rounding may have moved its eigenvalues."""
    C = seen.covariance
    return float(ROUNDING * torch.finfo(C.dtype).eps * len(C) ** 0.5)


def weighted(weight: Tensor, seen: Moments) -> Tensor:
    """One over the variance of each output [out], 0 where it doesn't vary: noise times it has no scale.

    Args:
        weight: W [out, n].
        seen: moments of the inputs.
    """
    C = seen.covariance.double()
    signal = (weight @ C * weight).sum(1)
    least = rounding(seen) * (weight.square() @ C.diagonal())
    return torch.where(signal > least, 1 / signal.clamp(min=1e-300), 0.0)


def columns(weight: Tensor, positions: Tensor) -> Tensor:
    """Columns of the flattened weight [out, n] that belong to input positions.

    Args:
        weight: [out, in] or [out, in, kh, kw].
        positions: of the inputs [k].

    Returns:
        Indices [k·kh·kw].
    """
    span = weight[0, 0].numel()
    return (positions[:, None] * span + torch.arange(span)).flatten()


def fit(weight: Tensor, seen: Moments, kept: Tensor, ridge: float) -> Tensor:
    """Fit a reader to the inputs that stay.

    Args:
        weight: W [out, n], any trailing shape flattened.
        seen: moments of all inputs.
        kept: S, columns that stay [k].
        ridge: λ as a share of C's diagonal.

    Returns:
        W' [out, k].
    """
    W = weight.detach().flatten(1).double()
    C = seen.covariance[:, kept]
    gram = ridged(Moments(seen.mean[kept], C[kept], seen.rows), ridge)
    cross = W @ C.double()
    L, failed = torch.linalg.cholesky_ex(gram)
    return (torch.linalg.solve(gram, cross.T) if failed else torch.cholesky_solve(cross.T, L)).T
