"""Torch-Pruning, to compare with: a model pruned one-shot by one criterion, at one ratio.

The ratio holds for each layer, or, as it calls it, globally: units of all layers are ranked together. It cuts whole
residual streams too, all but the classifier's outputs. What the widths of timm's attention follow from is mended
afterwards, as its own example for timm does.

Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023), and its package torch-pruning.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F
from torch_pruning.pruner import importance

from zoo import measure

CRITERIA: Mapping[str, Callable[[], importance.Importance]] = {
    "random": importance.RandomImportance,
    "L1": partial(importance.MagnitudeImportance, p=1, group_reduction="first", normalizer=None),
    "L2": partial(importance.MagnitudeImportance, p=2, group_reduction="first", normalizer=None),
    "group L1": partial(importance.MagnitudeImportance, p=1),
    "group L2": partial(importance.MagnitudeImportance, p=2),
    "LAMP": importance.LAMPImportance,
    "Taylor": importance.TaylorImportance,
    "BN scale": importance.BNScaleImportance,
}


GLOBAL = "global "  # before the name of a criterion


def criteria(model: nn.Module) -> list[str]:
    """The criteria that can rank every layer of a model, each by layers and globally."""
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    known = [name for name in CRITERIA if name != "BN scale" or normalised]
    return [*known, *(GLOBAL + name for name in known if name != "random")]


def narrowed(
    model: Any,
    input: Sequence[int],
    ratio: float,
    heads: bool = False,
    criterion: str = "group L2",
    slopes: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Cut one share of the channels.

    Args:
        model: dense, from timm; left as it was.
        input: channels, height, width.
        ratio: share of the channels that goes.
        heads: whether attention loses whole heads rather than the same share of the width of each.
        criterion: one of `criteria`.
        slopes: what `gradients` gives, which `Taylor` needs.

    Returns:
        The pruned model in eval mode.
    """
    model = copy.deepcopy(model).eval().requires_grad_()
    attention = [
        m for m in model.modules() if hasattr(m, "num_heads") and isinstance(getattr(m, "qkv", None), nn.Module)
    ]
    even = [m for m in attention if hasattr(m, "head_dim") and len(m.qkv.weight) == 3 * m.num_heads * m.head_dim]
    outputs = model.get_classifier()
    outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that lie in no layer: their last dimension is the right one
        pruner = torch_pruning.pruner.BasePruner(
            model,
            torch.randn(1, *input),
            importance=CRITERIA[criterion.removeprefix(GLOBAL)](),
            global_pruning=criterion.startswith(GLOBAL),
            pruning_ratio=ratio,
            head_pruning_ratio=ratio,
            ignored_layers=[layer for layer in outputs if isinstance(layer, nn.Module)],
            num_heads={module.qkv: module.num_heads for module in attention},
            prune_num_heads=heads,
            prune_head_dims=not heads,
            in_channel_groups={},
            out_channel_groups={},
        )
        for path, slope in (slopes or {}).items():
            model.get_parameter(path).grad = slope.clone()
        pruner.step()
    model.zero_grad()
    for module in attention:
        module.num_heads = pruner.num_heads[module.qkv]
    for module in even:
        module.head_dim = len(module.qkv.weight) // (3 * module.num_heads)
        module.attn_dim = module.num_heads * module.head_dim
    return model


def gradients(model: nn.Module, labelled: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Of the summed cross-entropy of images [B, C, H, W] and their classes: path → gradient of a parameter."""
    model = copy.deepcopy(model).eval().requires_grad_()
    for images, classes in labelled:
        for x, y in zip(images.split(8), classes.split(8), strict=True):  # large batches cost page faults
            F.cross_entropy(model(x), y, reduction="sum").backward()
    return {path: each.grad for path, each in model.named_parameters() if each.grad is not None}


def ratio(model: Any, input: Sequence[int], share: float, **how: Any) -> float:
    """The ratio at which the macs come nearest to a share of the dense model's.

    Args:
        model: dense, from timm.
        input: channels, height, width.
        share: of the macs that stay.
        how: arguments of `narrowed`.
    """
    dense = measure(model, input).macs
    low, high, reached = 0.0, 1.0, {0.0: 1.0}
    for _ in range(10):
        middle = (low + high) / 2
        reached[middle] = measure(narrowed(model, input, middle, **how), input).macs / dense
        low, high = (middle, high) if reached[middle] > share else (low, middle)
    return min(reached, key=lambda at: abs(reached[at] - share))


def norms_of(model: nn.Module) -> list[Any]:
    """The batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def unfolded(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """The same function with batch norms whose statistics are those of these images.

    Where norms were folded into layers, what they are left with says nothing, and measured anew it would change the
    function.
    """
    model = copy.deepcopy(model).eval()
    norms = norms_of(model)
    moments: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def look(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        x = arguments[0].double().transpose(0, 1).flatten(1)
        moments[norm].append(torch.stack([x.mean(1), x.square().mean(1)]))

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    with torch.no_grad():
        for batch in batches if norms else ():
            model(batch)
        for norm in norms:
            mean, square = torch.stack(moments[norm]).mean(0)
            variance = square - mean.square()
            before = (norm.running_var.double() + norm.eps).sqrt()
            norm.bias += (mean - norm.running_mean) * norm.weight / before
            norm.weight *= (variance + norm.eps).sqrt() / before
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    for hook in hooks:
        hook.remove()
    return model


def recalibrate_(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Measure the running statistics of batch norms anew, as the mean over batches."""
    norms = norms_of(model)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in batches if norms else ():
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
