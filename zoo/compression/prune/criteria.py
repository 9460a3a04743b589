"""Criteria: how important each unit of a group is by itself.

| name         | importance of unit j                                                                        |
|--------------|---------------------------------------------------------------------------------------------|
| `obs`        | none by itself: units go one by one, those first whose loss the refitted readers feel least |
| `activation` | E[x_j²] · ‖W_j‖², the power that it adds to its readers' outputs                            |
| `taylor`     | E |Σ x_j · ∂L/∂x_j|, summed over an image and the readers                                   |
| `l1`, `l2`   | ‖w_j‖₁, ‖w_j‖₂², of the weights that write it                                               |

L of `taylor` is the cross-entropy against the class that the model itself names, so that no labels are needed.

Sources: Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017), section 3.1; Molchanov et al., "Pruning
Convolutional Neural Networks for Resource Efficient Inference" (ICLR 2017), section 2.2, equations 6 to 8.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.compression.activations import Draw, observe
from zoo.compression.channels.groups import Group
from zoo.compression.prune.obs import inputs
from zoo.compression.prune.refit import Moments, columns
from zoo.errors import DataError


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at.

    Args:
        tensors: path → tensor of the dense model, on the CPU.
        seen: moments of the readers.
        gradients: of each group's name, E |Σ x · ∂L/∂x| [units]; empty where the criterion doesn't ask for it.
    """

    tensors: Mapping[str, Tensor]
    seen: Mapping[str, Moments]
    gradients: Mapping[str, Tensor]


def activation(group: Group, evidence: Evidence) -> Tensor:
    """E[x_j²] · ‖W_j‖², summed over the readers [units]."""
    score = torch.zeros(group.units, dtype=torch.float64)
    for path in group.readers:
        weight = evidence.tensors[f"{path}.weight"]
        power = evidence.seen[path].power * weight.flatten(1).double().square().sum(0)
        score += torch.stack([power[columns(weight, unit)].sum() for unit in inputs(group, path)])
    return score


def taylor(group: Group, evidence: Evidence) -> Tensor:
    """E |Σ x_j · ∂L/∂x_j| [units]."""
    return evidence.gradients[group.name]


def l1(group: Group, evidence: Evidence) -> Tensor:
    """‖w_j‖₁ [units]."""
    return _written(group, evidence, torch.abs)


def l2(group: Group, evidence: Evidence) -> Tensor:
    """‖w_j‖₂² [units]."""
    return _written(group, evidence, torch.square)


CRITERIA: Mapping[str, Callable[[Group, Evidence], Tensor] | None] = {
    "obs": None,
    "activation": activation,
    "taylor": taylor,
    "l1": l1,
    "l2": l2,
}


def _written(group: Group, evidence: Evidence, of: Callable[[Tensor], Tensor]) -> Tensor:
    score = torch.zeros(group.units, dtype=torch.float64)
    for piece in group.slices:
        if piece.written:
            rows = evidence.tensors[piece.tensor].movedim(piece.dim, 0).flatten(1)
            score += of(rows.double()).sum(1)[piece.index].sum(1)
    return score


def gradients(model: nn.Module, groups: Sequence[Group], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean over images of |Σ x · ∂L/∂x| of each unit, x the inputs of its group's readers.

    Args:
        model: in eval mode, a classifier; left as it was, gradients included.
        groups: whose units.
        batches: images [B, C, H, W].

    Returns:
        Group's name → [units], in double precision, on the CPU.

    Raises:
        DataError: the model's output isn't a tensor, so its classes aren't known.
    """
    of: dict[str, list[Group]] = {}
    for group in groups:
        for path in group.readers:
            of.setdefault(path, []).append(group)
    score = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    product: dict[str, Tensor] = {}  # of one batch [B, units]

    def read(path: str, layer: nn.Module, x: Tensor, draw: Draw) -> None:
        def receive(gradient: Tensor) -> None:
            channels = (
                (x.detach() * gradient).transpose(1, -1) if isinstance(layer, nn.Conv2d) else x.detach() * gradient
            )
            each = channels.flatten(1, -2).sum(1).double().cpu() if channels.ndim > 2 else channels.double().cpu()
            for group in of[path]:
                product[group.name] = product.get(group.name, 0) + each[:, inputs(group, path)].sum(2)

        if x.requires_grad:
            x.register_hook(receive)

    def run(batch: Tensor) -> None:
        product.clear()
        with torch.enable_grad():
            image = batch.detach().requires_grad_()
            logits = model(image)
            if not isinstance(logits, Tensor):
                raise DataError(
                    f"prune: taylor needs logits, but {type(model).__name__} gives a {type(logits).__name__}: "
                    "take another criterion, such as obs"
                )
            loss = F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
            torch.autograd.grad(loss, image)
        for name, each in product.items():
            score[name] += each.abs().sum(0)

    observe(run, {path: model.get_submodule(path) for path in of}, batches, before=read)
    images = sum(map(len, batches))
    return {name: total / images for name, total in score.items()}
