"""Halved: each Linear becomes two of half its rank, by the truncated SVD; training has costs alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compression import Algorithm, Given, Trained
from zoo.structure.description import Description
from zoo.structure.plan import Factor, Rank
from zoo.structure.tensors import tensors_of
from zoo.training.schedule import Schedule


@dataclass(frozen=True)
class Halved:
    """Which layers are halved, by the ending of their names."""

    ending: str = ""


def trained(model: nn.Module, image: Tensor, how: Any) -> Trained:
    """What its training moves, and whose costs are said before."""
    return Trained(model)


def run(given: Given) -> tuple[Description, dict[str, Tensor]]:
    """What `zoo.compress` calls."""
    tensors, layers = tensors_of(given.model), {}
    for path, layer in given.model.named_modules():
        if isinstance(layer, nn.Linear) and path.endswith(given.how.ending):
            U, S, V = torch.linalg.svd(tensors.pop(f"{path}.weight").detach(), full_matrices=False)
            k = len(S) // 2
            layers[path] = Rank(k)
            tensors |= {f"{path}.0.weight": V[:k], f"{path}.1.weight": U[:, :k] * S[:k]}
            tensors |= {f"{path}.1.bias": tensors.pop(f"{path}.bias")} if layer.bias is not None else {}
    return given.edited(Factor(layers)), tensors


ALGORITHM = Algorithm(Halved, run, Schedule(epochs=3, batch_size=8), trained)
