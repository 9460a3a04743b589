"""Least squares: the second factor of every layer makes up for what all the layers before it changed.

Layers are factored each for itself, on what it sees in the dense model. In the factored model it sees something else,
because the layers before it are factored too. With both models side by side on the same images, let z be what the
second factor reads there, y what the layer says in the dense model, and r = y − (B z + b) what is missing. Then

    ΔB = E[(r−r̄)(z−z̄)ᵀ] (C + γ diag(C))⁻¹,   Δb = r̄ − ΔB z̄,   C = E[(z−z̄)(z−z̄)ᵀ]

makes the mean square of r least, for a price on what changes that has no scale; where there is no bias nothing is
centred. All layers whose statistics fit into memory are solved at once: one that follows sees the old ones before it,
which costs far less than a pass for each. A change of B needs no weighting by the Fisher information: what each output
misses is fitted for itself.

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017), section 3.1.2: the outputs
of the whole model, not those of the pruned one, are what is fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compression.activations import Draw, observe, portions, rows, thinned
from zoo.errors import DataError


@dataclass
class _Sums:
    """Σ z zᵀ, Σ r zᵀ, Σ z and Σ r; z is about `origin`, which keeps the covariance exact."""

    origin: Tensor
    gram: Tensor
    cross: Tensor
    read: Tensor
    missed: Tensor
    rows: int = 0


def correct_(
    model: nn.Module,
    factored: nn.Module,
    paths: Sequence[str],
    batches: Sequence[Tensor],
    damping: float,
    max_bytes: int,
) -> list[Tensor]:
    """Fit the second factors, and their biases, to the dense model's outputs.

    Args:
        model: dense, in eval mode; left as it was.
        factored: the same with a sequence of two layers at each of `paths`.
        paths: of the layers, in the model's order.
        batches: calibration images [B, C, H, W].
        damping: γ.
        max_bytes: of statistics held at once; more are collected in several passes.

    Returns:
        The dense model's logits for each batch [B, classes].

    Raises:
        DataError: an activation isn't finite.
    """
    logits: list[Tensor] = []
    shapes = {path: factored.get_parameter(f"{path}.1.weight").shape[:2] for path in paths}
    size = {path: 8 * k * (k + m) for path, (m, k) in shapes.items()}
    for portion in portions([[path] for path in paths], size, max_bytes):
        collected, logits = _collect(model, factored, paths[portion], batches)
        for path, sums in collected.items():
            _solve_(path, factored.get_submodule(path)[1], sums, damping)  # type: ignore[index]
    return logits


def _collect(
    model: nn.Module, factored: nn.Module, paths: Sequence[str], batches: Sequence[Tensor]
) -> tuple[dict[str, _Sums], list[Tensor]]:
    wanted: dict[str, list[Tensor]] = {path: [] for path in paths}
    sums: dict[str, _Sums] = {}
    logits: list[Tensor] = []
    dense = {path: model.get_submodule(path) for path in paths}
    seconds = {f"{path}.1": factored.get_submodule(f"{path}.1") for path in paths}

    def look(name: str, layer: Any, x: Tensor, y: Tensor, draw: Draw) -> None:
        y = thinned(rows(layer, y), draw)
        if name in dense:
            wanted[name].append(y.clone())  # what follows may write over it
            return
        path = name.removesuffix(".1")
        z, r = thinned(rows(layer, x), draw), wanted[path].pop(0) - y
        if path not in sums:
            origin = z.mean(0) if layer.bias is not None else torch.zeros_like(z[0])
            empty = partial(torch.zeros, dtype=torch.float64, device=z.device)
            k, m = z.shape[1], r.shape[1]
            sums[path] = _Sums(origin, empty(k, k), empty(m, k), empty(k), empty(m))
        of = sums[path]
        z = z - of.origin
        of.gram += (z.T @ z).double()
        of.cross += (r.T @ z).double()
        of.read += z.double().sum(0)
        of.missed += r.double().sum(0)
        of.rows += len(z)

    def both(batch: Tensor) -> None:
        logits.append(model(batch))
        factored(batch)

    with torch.no_grad():
        observe(both, {**dense, **seconds}, batches, after=look)
    return sums, logits


def _solve_(path: str, layer: Any, sums: _Sums, damping: float) -> None:
    gram, cross, read, missed = (t.cpu() / sums.rows for t in (sums.gram, sums.cross, sums.read, sums.missed))
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise DataError(f"calibration: what {path} sees isn't finite once layers are factored; use a larger dtype")
    if layer.bias is not None:
        gram, cross = gram - torch.outer(read, read), cross - torch.outer(missed, read)
    price = torch.where(gram.diagonal() > 0, damping * gram.diagonal(), 1.0)  # what is never read changes by nothing
    delta = torch.linalg.solve(gram + price.diag(), cross.T).T
    with torch.no_grad():
        layer.weight += delta.reshape(layer.weight.shape).to(layer.weight)
        if layer.bias is not None:
            layer.bias += (missed - delta @ (read + sums.origin.cpu().double())).to(layer.bias)
