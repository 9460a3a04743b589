"""Masks: the zeros of a pruned weight stay zero while it trains."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn


@contextlib.contextmanager
def zeros_held(model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Hold the zeros of weights: their gradient is zero, and so is every step that momentum and decay make of it.

    Args:
        model: the model in training.
        paths: of the modules whose `weight` holds zeros (a plan's Mask edits).
    """
    weights = [model.get_submodule(path).weight for path in paths]
    hooks = []
    for weight in weights:
        assert isinstance(weight, nn.Parameter)
        mask = (weight.detach() != 0).to(weight.dtype)
        hooks.append(weight.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
