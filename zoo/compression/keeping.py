"""Keeping: what compression leaves of a model beside its shapes: its precision and what of it is trained.

Half precision is computed in single: a CPU takes ten times as long for it, and small differences get lost.
"""

import copy
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoo.measurement.macs import like_images
from zoo.printable import logger
from zoo.structure.description import Description, config_of, configure_, skeleton_of
from zoo.structure.graph.drops import drop_rates
from zoo.structure.tensors import assign_, tensors_of

log = logger(__name__)

_FACTOR = re.compile(r"\.[01](\.\w+)$")  # of one of the two layers that stand for one


def single(model: nn.Module) -> nn.Module:
    """The model, in single precision at least: a copy where it has less."""
    tensors = tensors_of(model).values()
    half = any(tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32 for tensor in tensors)
    return copy.deepcopy(model).float() if half else model


def rebuilt(model: nn.Module, description: Description, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A model of this description with these tensors, in eval mode, preprocessing as another and on its device.

    Args:
        model: what it was made from.
        description: of what is built.
        tensors: path → tensor of it, which are copied.
    """
    smaller = skeleton_of(description)
    assign_(smaller, {path: tensor.detach().clone() for path, tensor in tensors.items()}, description.name)
    smaller.num_classes = model.num_classes
    configure_(smaller, config_of(model))
    return smaller.to(like_images(model).device)


def alike_(smaller: nn.Module, model: nn.Module) -> nn.Module:
    """Give a compressed model the types of another's tensors, and let those be trained that are trained there.

    What drops activations isn't a matter of tensors: a plan gives what its base has, a graph what was traced. What is
    lost is logged.

    Args:
        smaller: made of the model; changed in place.
        model: as it was given.
    """
    held, own = tensors_of(model), like_images(model)
    for path, tensor in tensors_of(smaller).items():
        like = held.get(path, held.get(_FACTOR.sub(r"\1", path), own))
        if tensor.is_floating_point() and like.is_floating_point():  # which token ids aren't
            tensor.data = tensor.data.to(like.dtype)
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(like.requires_grad)
    kept = _rates(smaller)
    lost = {path: rate for path, rate in _rates(model).items() if rate != kept.get(path)}
    if lost:
        path, rate = next(iter(lost.items()))
        log.warning(
            "%d drop rates of the model, such as %g of %s, aren't kept: set them on what is returned, or compress a "
            "folder that zoo.save wrote with base=Base(id, {the arguments it was created with})",
            len(lost),
            rate,
            path or "the model itself",
        )
    return smaller


def _rates(model: nn.Module) -> dict[str, float]:
    """Path of what drops activations → its rate."""
    return {path: rate for path, module in model.named_modules() for rate in drop_rates(module).values()}
