"""Drops: what leaves out whole branches while training, and how an export that computes as in eval mode still shows it.

In eval mode stochastic depth does nothing, and a traced program has nothing of it. So for as long as a model is
exported, each such module is a dropout that isn't at work: that is traced, with its rate and its path. An idle dropout
returns the very tensor that it was given, which tracing takes for its result from then on, even where the model means
what went in; so it is given a copy.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zoo.errors import StructureError

DROPOUTS = {
    "aten.dropout": "dropout",
    "aten.feature_dropout": "dropout2d",
    "aten.alpha_dropout": "alpha_dropout",
    "aten.feature_alpha_dropout": "feature_alpha_dropout",
}
"""Operation → the op of a graph that keeps it at work while training."""
_DROPS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


def drops_branches(name: str) -> bool:
    """Whether a class of this name is stochastic depth: timm's, torchvision's, a graph's, transformers' many copies."""
    return name.endswith("DropPath") or name == "StochasticDepth"


@contextmanager
def shown(model: nn.Module, seconds: float = math.inf) -> Iterator[None]:
    """A model of which everything that drops something is traced, for as long as the context is open.

    Args:
        model: in eval mode.
        seconds: of CPU, after which the next operation is refused. It isn't a signal that ends it: an exception out of
            one aborts the process where torch's C++ expects none.
    """
    patched = [each for each in model.modules() if drops_branches(type(each).__name__) and drop_rates(each)]
    for module in patched:
        vars(module)["forward"] = partial(_idle, max(drop_rates(module).values()))
    try:
        with _Apart(time.process_time() + seconds):
            yield
    finally:
        for module in patched:
            del vars(module)["forward"]


class _Apart(TorchFunctionMode):
    """What drops something is given a copy, until the time is over."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.process_time() > self.end:
            raise StructureError("tracing takes too long")
        if func in _DROPS and args:
            args = (args[0].clone(), *args[1:])
        return func(*args, **(kwargs or {}))


class Undropped(TorchFunctionMode):
    """Nothing is dropped by a function that a module calls itself, for as long as the context is open."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in _DROPS and args else func(*args, **(kwargs or {}))


def drop_rates(module: nn.Module) -> dict[str, float]:
    """The rates of a module that drops something, by the names of its attributes."""
    if not (isinstance(module, nn.modules.dropout._DropoutNd) or drops_branches(type(module).__name__)):
        return {}
    held = {name: getattr(module, name, None) for name in ("drop_prob", "p")}
    return {name: float(rate) for name, rate in held.items() if isinstance(rate, int | float) and rate}


def _idle(rate: float, x: Tensor) -> Tensor:
    return F.dropout(x, rate, training=False)
