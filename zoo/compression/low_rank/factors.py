"""Factors: the two layers that stand for one, and how far outputs move.

A layer y = W x + b with W (m × n) becomes y = B (A x) + b with A (k × n) and B (m × k). Of a convolution one factor
keeps the kernel (`Rank.spatial`): the first, with A (k × n·kh·kw), or the last, with B (m × k·kh·kw).

What the methods that cut ranks share stands here: the principal directions of a layer's outputs,

    E[y yᵀ] = U Λ Uᵀ  (y without the bias),   W_k = U_k U_kᵀ W,   A = U_kᵀ W,   B = U_k,

of which the k with the largest eigenvalues keep most of y, and the noise-to-signal ratio.

Source: Yu, Wu, "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!" (AAAI 2023), section 3.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.compression.activations import Draw, observe, rows, wide
from zoo.errors import DataError, StructureError
from zoo.structure.plan import Factor, Rank
from zoo.structure.tensors import tensors_of

EPSILON = 1e-3  # of the source's noise-to-signal ratio


def pair(layer: nn.Module, rank: Rank) -> nn.Sequential:
    """The two layers that a plan puts in a layer's place, with random values."""
    holder = nn.Sequential(layer)
    Factor({"0": rank}).apply_(holder)
    factors = holder[0]
    assert isinstance(factors, nn.Sequential)
    return factors


def factored(layer: Any, A: Tensor, B: Tensor, path: str, bias: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of the two layers that take a layer's place, by name.

    Args:
        layer: the one replaced, a Linear or a Conv2d with W [m, n, ...].
        A: first factor [k, n] or, where it keeps the kernel, [k, n, kh, kw] or [k, n·kh·kw].
        B: last factor [m, k] or, where it keeps the kernel, [m, k, kh, kw] or [m, k·kh·kw].
        path: of the layer.
        bias: of the last factor [m]; None takes the layer's own. A layer without a bias gets none.

    Returns:
        `path.0.weight`, `path.1.weight` and `path.1.bias`, contiguous, in the layer's type, on the CPU.
    """
    weight, own = layer.weight, layer.bias
    (m, n), k = weight.shape[:2], len(A)
    if isinstance(layer, nn.Conv2d):
        A, B = A.reshape(k, n, -1), B.reshape(m, k, -1)
        A, B = (f.reshape(*f.shape[:2], *(layer.kernel_size if f.shape[2] > 1 else (1, 1))) for f in (A, B))
    named = {f"{path}.0.weight": A, f"{path}.1.weight": B}
    if own is not None:
        named[f"{path}.1.bias"] = own if bias is None else bias
    return {
        name: value.detach().to("cpu", weight.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, value in named.items()
    }


def replaced(model: nn.Module, factors: Mapping[str, Tensor], paths: Collection[str]) -> dict[str, Tensor]:
    """Path → tensor of the factored model, on the CPU: its own tensors, of the layers at `paths` the factors."""
    gone = {f"{path}.{name}" for path in paths for name in ("weight", "bias")}
    kept = {path: t.detach().cpu().clone() for path, t in tensors_of(model).items() if path not in gone}
    return {**kept, **factors}


def nsr(noisy: Tensor, signal: Tensor, channel: int) -> Tensor:
    """Noise-to-signal ratio, the mean over channels c of E[(ŷ_c − y_c)²] / (Var[y_c] + 10⁻³).

    Args:
        noisy: ŷ, any shape.
        signal: y, of the same shape; its variance is the unbiased one.
        channel: the dimension of c; all others are averaged over.
    """
    noisy, signal = (wide(y.movedim(channel, -1).flatten(0, -2)) for y in (noisy, signal))
    return ((noisy - signal).square().mean(0) / (signal.var(0) + EPSILON)).mean()


def dense_logits(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """The model's logits for each batch, [B, classes]: what a factored layer must not move.

    Args:
        model: in eval mode.
        batches: calibration images [B, C, H, W].

    Raises:
        DataError: there are no batches, one has fewer than two images (which have no variance), the logits aren't
            finite, or are the same for every image.
        StructureError: the outputs aren't logits [B, classes].
    """
    if not batches:
        raise DataError("calibration: no images; pass at least one batch")
    for number, batch in enumerate(batches):
        if len(batch) < 2:
            raise DataError(f"calibration: batch {number} has {len(batch)} image(s), expected at least 2 (a variance)")
    with torch.no_grad():
        logits: list[Any] = [model(batch) for batch in batches]
    for y in logits:
        if not isinstance(y, Tensor) or y.ndim != 2:
            shape = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            found = f"{type(model).__name__}: the outputs are {shape}, expected logits [B, classes]"
            raise StructureError(f"{found}: use another method, such as prune")
        if not torch.isfinite(y).all():
            raise DataError("calibration: the model's outputs aren't finite; check the images and the model")
    everything = torch.cat(logits)
    if torch.equal(everything, everything[:1].expand_as(everything)):
        raise DataError("calibration: the model's outputs are the same for every image; pass images that differ")
    return [y.float() for y in logits]


def directions(model: nn.Module, path: str, batches: Sequence[Tensor]) -> Tensor | None:
    """Principal directions of a layer's outputs: the eigenvectors U [m, m] of E[y yᵀ], largest eigenvalue first.

    Args:
        model: in eval mode.
        path: of a Linear or a 1 × 1 convolution.
        batches: calibration images [B, C, H, W].

    Returns:
        U in double precision, on the CPU; None where every output is zero, so that there are no directions.

    Raises:
        DataError: an output isn't finite.
    """
    second: list[Tensor] = []

    def look(path: str, layer: Any, x: Tensor, y: Tensor, draw: Draw) -> None:
        y = rows(layer, y.detach())
        if layer.bias is not None:
            y = y - layer.bias
        second.append((y.T @ y).double().cpu() / len(y))

    with torch.no_grad():
        observe(model, {path: model.get_submodule(path)}, batches, after=look)
    covariance = torch.stack(second).mean(0)
    if not torch.isfinite(covariance).all():
        raise DataError(f"calibration: the output of {path} isn't finite; check the images and the model")
    if not covariance.any():
        return None
    U: Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return U


def factors(layer: Any, U: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A = U_kᵀ W [k, n] and B = U_k [m, k], in double precision, on the CPU."""
    W = layer.weight.detach().flatten(1).cpu().double()
    return U[:, :k].T @ W, U[:, :k]


def moved(
    model: nn.Module,
    path: str,
    U: Tensor,
    k: int,
    batches: Sequence[Tensor],
    logits: Sequence[Tensor],
    rise: Callable[[int, Tensor, Tensor], Tensor],
) -> tuple[float, float]:
    """How far the logits move with W_k = U_k U_kᵀ W in the place of a layer's W, the mean of the batches.

    Args:
        model: in eval mode; left as it was.
        path: of the layer.
        U: its directions [m, m].
        k: the rank.
        batches: images [B, C, H, W].
        logits: of the model as it is, y, for each batch [B, classes].
        rise: the number of a batch, y_k, y → another figure.

    Returns:
        NSR(y_k, y), and the other figure.
    """
    A, B = factors(layer := model.get_submodule(path), U, k)
    weight: Any = layer.weight
    W_k = {f"{path}.weight": (B @ A).reshape(weight.shape).to(weight)}
    noise = risen = 0.0
    with torch.no_grad():
        for number, (batch, y) in enumerate(zip(batches, logits, strict=True)):
            y_k = functional_call(model, W_k, (batch,)).float()
            noise += float(nsr(y_k, y, -1)) / len(batches)
            risen += float(rise(number, y_k, y)) / len(batches)
    return noise, risen
