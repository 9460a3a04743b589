"""The exponential moving average of a model's weights, θ̄ ← d·θ̄ + (1 - d)·θ after each step.

It starts at the weights that training starts from, so after n steps θ̄ = dⁿ·θ₀ + (1 - d)·Σᵢ dⁿ⁻ⁱ·θᵢ. Running statistics
are averaged as well; whole numbers are copied.

Source: Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zoo.structure.tensors import tensors_of

Average = dict[str, Tensor]


def started(model: nn.Module) -> Average:
    """The average before the first step."""
    return {name: value.detach().clone() for name, value in tensors_of(model).items()}


@torch.no_grad()
def update_(average: Average, model: nn.Module, decay: float) -> None:
    """Take one step's weights into the average.

    Args:
        average: what `started` gave.
        model: after the step.
        decay: d, 0..1.
    """
    means, values = [], []
    for name, value in tensors_of(model).items():
        if value.is_floating_point():
            means.append(average[name])
            values.append(value.detach())
        else:
            average[name].copy_(value)
    torch._foreach_lerp_(means, values, 1 - decay)


@torch.no_grad()
def put_(average: Average, model: nn.Module) -> None:
    """Give the model the averaged weights."""
    for name, value in tensors_of(model).items():
        value.copy_(average[name])


@contextlib.contextmanager
def averaged(model: nn.Module, average: Average | None) -> Iterator[None]:
    """Lend the model its averaged weights, for an evaluation; None lends nothing."""
    if average is None:
        yield
        return
    own = started(model)
    put_(average, model)
    try:
        yield
    finally:
        put_(own, model)
