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

from zoo.compression.activations import Draw, observe, patches, portions
from zoo.errors import DataError

ROUNDING = 1e-14  # of a double-precision sum over all rows, with room
MAX_BYTES = 2 << 30  # of second moments held at a time


@dataclass(frozen=True)
class Moments:
    """First and second moments of what a layer reads.

    Args:
        mean: μ [n].
        covariance: C [n, n], about zero where the layer may not shift its mean.
        power: E[x²] [n].
        rows: how many were looked at.
    """

    mean: Tensor
    covariance: Tensor
    power: Tensor
    rows: int


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
        mean, second, power = (
            (self.fit.rows * fit + self.held.rows * held) / rows
            for fit, held in zip(_raw(self.fit), _raw(self.held), strict=True)
        )
        return Moments(mean, second - torch.outer(mean, mean), power, rows)


def _raw(seen: Moments) -> tuple[Tensor, Tensor, Tensor]:
    return seen.mean, seen.covariance + torch.outer(seen.mean, seen.mean), seen.power


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
        Path → moments, in double precision, on the CPU.

    Raises:
        DataError: there are no images, or an activation isn't finite.
    """
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def read(path: str, layer: nn.Module, x: Tensor, draw: Draw) -> None:
        x = patches(layer, x.to(torch.promote_types(x.dtype, torch.float32)), draw)
        x = x.double()  # μμᵀ is about to be taken off: in floats C would turn indefinite
        total, products = x.sum(0), x.T @ x
        first[path] = first[path] + total if path in first else total
        second[path] = second[path] + products if path in second else products
        rows[path] = rows.get(path, 0) + len(x)

    layers = {path: model.get_submodule(path) for path in readers}
    with torch.no_grad():
        observe(model, layers, batches, before=read)
    if layers and not rows:
        raise DataError("calibration: no images; pass at least one batch")
    return {
        path: _moments(model, path, first[path] / rows[path], second[path] / rows[path], rows[path], normalised)
        for path in rows
    }


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
        self.bytes = {path: 16 * model.get_parameter(f"{path}.weight")[0].numel() ** 2 for path in readers}
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


def _moments(
    model: nn.Module, path: str, mean: Tensor, second: Tensor, rows: int, normalised: Collection[str]
) -> Moments:
    mean, second = mean.cpu(), second.cpu()
    if not torch.isfinite(second).all():
        raise DataError(f"calibration: the input of {path} isn't finite; check the images and the model")
    if getattr(model.get_submodule(path), "bias", None) is None and path not in normalised:
        mean = torch.zeros_like(mean)
    return Moments(mean, second - torch.outer(mean, mean), second.diagonal().clone(), rows)


def ridged(seen: Moments, ridge: float) -> Tensor:
    """λ: of each input the ridge, and no less than what rounding may have made of C; C + diag(λ) is positive definite.

    C is the difference of E[x xᵀ] and μμᵀ: where inputs hardly vary, rounding is all that is left of it. Each input has
    a λ of its own, so that the scale of none makes a difference.

    Args:
        seen: moments of the inputs.
        ridge: share of C's diagonal.

    Returns:
        λ [n].
    """
    C = seen.covariance
    return torch.maximum(ridge * C.diagonal(), ROUNDING * len(C) * seen.power).clamp(min=1e-30)


def weighted(weight: Tensor, seen: Moments) -> Tensor:
    """One over the variance of each output [out], 0 where it doesn't vary: noise times it has no scale.

    Args:
        weight: W [out, n].
        seen: moments of the inputs.
    """
    signal = (weight @ seen.covariance * weight).sum(1)
    rounding = ROUNDING * weight.shape[1] * (weight.square() @ seen.power)
    return torch.where(signal > rounding, 1 / signal.clamp(min=1e-300), 0.0)


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
    W, C = weight.detach().flatten(1).double(), seen.covariance
    gram = C[kept][:, kept] + ridged(seen, ridge)[kept].diag()
    cross = W @ C[:, kept]
    L, failed = torch.linalg.cholesky_ex(gram)
    return (torch.linalg.solve(gram, cross.T) if failed else torch.cholesky_solve(cross.T, L)).T
