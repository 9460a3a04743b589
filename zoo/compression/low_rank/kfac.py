"""K-FAC: a step of all second factors together, towards the dense model's predictions.

What is fitted layer by layer costs nats that no layer sees. Of the mean divergence of the factored model's prediction q
from the dense model's p,  J = E[KL(p ‖ q)],  a pass with a backward pass gives for each second factor B, b, of which z
is the input with a one behind it and g the gradient at the output,

    ∇ = E[Σ_positions g zᵀ] with g from u = ∂J/∂logits,  D = −diag(h)⁻¹ ∇ (A + γ diag(A))⁻¹,
    A = E[z zᵀ],   h = E[Σ_positions g²] with g from random u of covariance F = diag(p̄) − p̄ p̄ᵀ,

Newton's step, were layers and outputs independent (the curvature of K-FAC, its second factor a diagonal). They aren't,
so the length of the step of all of them is that which is best to second order along it,

    α = −⟨∇, D⟩ / E[δᵀ F δ],   δ = change of the logits along D.

F is taken at p̄ = (1 − s)(p + q)/2 + s/classes, as it vanishes wherever q is wrongly sure. Whether the step helps on
other images is for whoever takes it to see. Neither labels nor random batches are needed, nor a rate. The sums take
about as much memory as the second factors do in double precision.

Source: Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (ICML 2015),
sections 3, 6.3 and 6.4.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compression.activations import Draw, observe, outputs_of, rows
from zoo.measurement.curvature import CLASSES, Fisher
from zoo.measurement.divergence import Divergence, as_one, kl

PROBED = 2e-3  # of the step that independent layers would take: logits are close to linear in it
SMOOTHING = 0.1  # s: larger than where signals are compared, as predictions disagree on few images


@dataclass
class _Sums:
    """Sums of g zᵀ, z zᵀ and g², of one second factor."""

    gradient: Tensor
    gram: Tensor
    information: Tensor
    rows: int = 0


def newton_(
    factored: nn.Module,
    layers: Sequence[nn.Module],
    batches: Sequence[Tensor],
    wanted: Sequence[Tensor],
    damping: float,
    seed: int = 0,
    divergence: Divergence = kl,
    fisher: Fisher = CLASSES,
) -> None:
    """Take one step of layers of a factored model; none where the divergence doesn't fall, or doesn't bend up.

    Args:
        factored: in eval mode.
        layers: its second factors, linear layers or 1 x 1 convolutions.
        batches: images [B, C, H, W].
        wanted: the dense model's outputs for each batch, as one tensor each.
        damping: γ.
        seed: of the random u.
        divergence: of outputs from those wanted.
        fisher: how it bends.
    """
    sums, outputs = _collect(factored, layers, batches, wanted, seed, divergence, fisher)
    images = sum(map(len, batches))
    steps = {layer: _direction(of, images, damping) for layer, of in sums.items()}
    slope = sum(float((of.gradient.cpu() / images * steps[layer]).sum()) for layer, of in sums.items())
    bends = sum(_curvature(of, images, steps[layer]) for layer, of in sums.items())
    if not (slope < 0 < bends):
        return
    old = {parameter: parameter.detach().clone() for layer in steps for parameter in layer.parameters()}
    length = PROBED * -slope / bends
    _move_(steps, length)
    moved = outputs_of(factored, batches)
    bent = sum(float(fisher.bend(*each, SMOOTHING).sum()) for each in zip(outputs, wanted, moved, strict=True))
    curvature = bent / (images * length**2)
    _restore_(old)
    if 0 < curvature < float("inf"):
        _move_(steps, -slope / curvature)


def mean_divergence(wanted: Sequence[Tensor], outputs: Iterable[Tensor], divergence: Divergence = kl) -> float:
    """The mean divergence in nats of outputs from those wanted, both in batches."""
    total = 0.0
    for p, q in zip(wanted, outputs, strict=True):
        total += divergence(q.double(), p.double()).sum().item()
    return total / sum(map(len, wanted))


def _collect(
    factored: nn.Module,
    layers: Sequence[nn.Module],
    batches: Sequence[Tensor],
    wanted: Sequence[Tensor],
    seed: int,
    divergence: Divergence,
    fisher: Fisher,
) -> tuple[dict[nn.Module, _Sums], list[Tensor]]:
    """The sums of each layer, and the outputs of each batch."""
    sums: dict[nn.Module, _Sums] = {}
    towards = True  # the dense prediction; else a random direction

    def look(path: str, layer: Any, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        z = rows(layer, x.detach())
        z = torch.cat([z, torch.ones_like(z[:, : layer.bias is not None])], 1)
        if layer not in sums:
            m, k = len(layer.weight), z.shape[1]
            empty = partial(torch.zeros, dtype=torch.float64, device=z.device)
            sums[layer] = _Sums(empty(m, k), empty(k, k), empty(m))
        sums[layer].gram += (z.T @ z).double()
        sums[layer].rows += len(z)
        y = y.view_as(y)
        if y.requires_grad:
            y.register_hook(partial(gradient, layer, z))
        return y

    def gradient(layer: nn.Module, z: Tensor, g: Tensor) -> None:
        g = rows(layer, g)
        if towards:
            sums[layer].gradient += (g.T @ z).double()
        else:
            sums[layer].information += g.square().sum(0).double()

    outputs: list[Tensor] = []

    def run(batch: Tensor) -> None:
        nonlocal towards
        number, images = len(outputs), batch.detach().clone().requires_grad_()
        y = as_one(factored(images))
        own, target = y.detach().double().requires_grad_(), wanted[number].double()
        (slope,) = torch.autograd.grad(divergence(own, target).sum(), own)
        towards = True
        torch.autograd.grad(y, images, slope.to(y), retain_graph=True, allow_unused=True)
        towards = False
        own = own.detach()
        u = fisher.probe(own, target, SMOOTHING, torch.Generator().manual_seed(1_000_003 * seed + number))
        torch.autograd.grad(y, images, u.to(y), allow_unused=True)
        outputs.append(own)

    with torch.enable_grad():
        observe(run, {str(number): layer for number, layer in enumerate(layers)}, batches, after=look)
    return sums, outputs


def _direction(of: _Sums, images: int, damping: float) -> Tensor:
    """D [m, k], or [m, k + 1] with a bias."""
    gradient, A, h = (t.cpu() for t in (of.gradient / images, of.gram / of.rows, of.information / images))
    A = A + (damping * A.diagonal()).clamp(min=1e-300).diag()
    D: Tensor = -torch.linalg.solve(A, gradient.T).T / h.clamp(min=1e-300)[:, None]
    return D


def _curvature(of: _Sums, images: int, D: Tensor) -> float:
    """Of J along D, were this the only layer."""
    A, h = of.gram.cpu() / of.rows, of.information.cpu() / images
    return float((h * (D @ A * D).sum(1)).sum())


def _move_(steps: Mapping[nn.Module, Tensor], length: float) -> None:
    with torch.no_grad():
        for layer, D in steps.items():
            weight: Any = layer.weight
            weight += (length * D[:, : weight.shape[1]]).reshape(weight.shape).to(weight)
            bias: Any = layer.bias
            if bias is not None:
                bias += (length * D[:, -1]).to(bias)


def _restore_(old: Mapping[nn.Parameter, Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in old.items():
            parameter.copy_(value)
