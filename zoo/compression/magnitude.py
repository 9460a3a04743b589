"""Magnitude: small weights become zero; the network keeps its shape, and computes as much as before.

    W ← M ⊙ W,   M = 0 for the given share of the weights, or of the rows, that are least

| criterion             | what is least                                                                     |
|-----------------------|-----------------------------------------------------------------------------------|
| `l1_unstructured`     | abs(w), in each layer                                                             |
| `global_unstructured` | abs(w), over all layers together                                                  |
| `ln_structured`       | ‖w_j‖₂ of the weights of an output j, in each layer: whole outputs become zero    |
| `two_of_four`         | abs(w), two of each four in a row that an output reads, which sparse kernels want |

Layers are linear and convolutions, the head among them, whose outputs `ln_structured` makes zero as any, so whole
classes: `exclude="head"` keeps these. Biases and norms stay. Zeros take part in products like all numbers, so nothing
is faster for them where no kernel knows them. What `ln_structured` leaves can be narrowed for real: `prune` by `l2`
takes the outputs that are zero first.

Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015), section 3; the
first three as in `torch.nn.utils.prune`, which computes them.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.utils import prune

from zoo.compression import Algorithm, Given
from zoo.compression.exclusion import Patterns, excluded
from zoo.declarations import one_of, validate
from zoo.errors import DataError
from zoo.printable import logger
from zoo.structure.description import Description
from zoo.structure.plan import Mask
from zoo.structure.tensors import tensors_of

log = logger(__name__)

ROW = 4  # weights, of which two stay
OTHER = "it is no linear layer and no convolution"


def l1_unstructured(layers: Sequence[nn.Module], sparsity: float) -> None:
    """Zero that share of each layer's weights."""
    for layer in layers:
        prune.l1_unstructured(layer, "weight", sparsity)


def global_unstructured(layers: Sequence[nn.Module], sparsity: float) -> None:
    """Zero that share of all weights."""
    held = [(layer, "weight") for layer in layers]
    prune.global_unstructured(held, prune.L1Unstructured, amount=sparsity)


def ln_structured(layers: Sequence[nn.Module], sparsity: float) -> None:
    """Zero that share of each layer's outputs."""
    for layer in layers:
        prune.ln_structured(layer, "weight", sparsity, n=2, dim=0)


def two_of_four(layers: Sequence[nn.Module], sparsity: float) -> None:
    """Zero half of each four weights in a row; an output's weights are in a row over its kernel, channels last.

    Raises:
        DataError: another share is asked for.
    """
    if sparsity != 0.5:
        raise DataError(f"magnitude: sparsity is {sparsity}, expected 0.5 of two_of_four")
    for layer in layers:
        prune.custom_from_mask(layer, "weight", half(layer.get_parameter("weight")))


def half(weight: Tensor) -> Tensor:
    """1 for the two largest of each four in a row, 0 for the others; ones for rows that fours don't fill.

    >>> half(torch.tensor([[1.0, -4.0, 3.0, 2.0]]))
    tensor([[0., 1., 1., 0.]])
    """
    last = weight.detach().movedim(1, -1)
    if last[0].numel() % ROW:
        return torch.ones_like(weight)
    fours = last.reshape(-1, ROW).abs()
    mask = torch.zeros_like(fours).scatter(1, fours.topk(ROW // 2, 1).indices, 1.0)
    return mask.reshape(last.shape).movedim(-1, 1)


CRITERIA: Mapping[str, Callable[[Sequence[nn.Module], float], None]] = {
    "l1_unstructured": l1_unstructured,
    "global_unstructured": global_unstructured,
    "ln_structured": ln_structured,
    "two_of_four": two_of_four,
}


@dataclass(frozen=True)
class Magnitude:
    """Which weights become zero.

    Args:
        criterion: how they are found, a name of `CRITERIA`.
        sparsity: the share that becomes zero, 0..1, of weights, or of outputs with `ln_structured`.
        exclude: paths, patterns or words (`head`, `stem`) of layers that stay as they are, as in `exclusion`.
        only: layers that alone may change, likewise; none means all.
    """

    criterion: Annotated[str, one_of(tuple(CRITERIA))] = "global_unstructured"
    sparsity: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    exclude: str | Sequence[str] = ()
    only: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        validate(self, "magnitude", DataError)


def magnitude(model: nn.Module, how: Magnitude | None = None) -> tuple[Mask, dict[str, Tensor]]:
    """Set small weights to zero.

    Args:
        model: left as it was.
        how: the declaration; None takes its defaults.

    Returns:
        The edit, and path → tensor of the masked model.

    Raises:
        DataError: no layer can be masked.
        UnknownName: `exclude` or `only` names no layer.
    """
    how = how or Magnitude()
    masked = copy.deepcopy(model)
    paths = weighted(masked, how.exclude, how.only)
    if not paths:
        raise DataError("magnitude: the model has no linear layer or convolution that may change")
    layers = [masked.get_submodule(path) for path in paths]
    CRITERIA[how.criterion](layers, how.sparsity)
    for layer in layers:
        prune.remove(layer, "weight")
    weights = [layer.get_parameter("weight") for layer in layers]
    zero, every = sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)
    log.info("magnitude: %s of %s weights are zero, %.1f %%", f"{zero:,}", f"{every:,}", 100 * zero / every)
    return Mask(tuple(paths)), tensors_of(masked)


def weighted(model: nn.Module, exclude: Patterns = (), only: Patterns = ()) -> list[str]:
    """Paths of the linear layers and convolutions that may change, each weight once."""
    gone, seen = excluded(model, exclude, only, "magnitude"), set[int]()
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and f"{path}.weight" not in gone:
            if id(module.weight) not in seen:
                found.append(path)
            seen.add(id(module.weight))
    return found


def run(given: Given) -> tuple[Description, Mapping[str, Tensor]]:
    """What `zoo.compress` calls."""
    edit, tensors = magnitude(given.model, given.how)
    return given.edited(edit), tensors


def whole(model: nn.Module, image: Tensor, how: Magnitude) -> dict[str, str]:
    """Path of each layer that has no mask → why."""
    gone, masked = excluded(model, how.exclude, how.only, "magnitude"), {*weighted(model, how.exclude, how.only)}
    held = [path.removesuffix(".weight") for path, weight in model.named_parameters() if weight.ndim > 1]
    return {path: gone.get(f"{path}.weight", OTHER) for path in held if path not in masked}


ALGORITHM = Algorithm(Magnitude, run, whole=whole)
