"""Torch-Pruning, to compare with: a model pruned one-shot by one criterion at one ratio for all layers.

It cuts whole residual streams too, all but the classifier's outputs. What the widths of timm's attention follow from is
mended afterwards, as its own example for timm does.

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


def criteria(model: nn.Module) -> list[str]:
    """The criteria that can rank every layer of a model."""
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return [name for name in CRITERIA if name != "BN scale" or normalised]


def narrowed(
    model: Any,
    input: Sequence[int],
    ratio: float,
    heads: bool = False,
    criterion: str = "group L2",
    labelled: Sequence[tuple[Tensor, Tensor]] = (),
) -> nn.Module:
    """Cut one share of the channels of every layer.

    Args:
        model: dense, from timm; left as it was.
        input: channels, height, width.
        ratio: share of the channels that goes.
        heads: whether attention loses whole heads rather than the same share of the width of each.
        criterion: a name in `CRITERIA`.
        labelled: images [B, C, H, W] and their classes, which `Taylor` needs.

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
            importance=CRITERIA[criterion](),
            pruning_ratio=ratio,
            head_pruning_ratio=ratio,
            ignored_layers=[layer for layer in outputs if isinstance(layer, nn.Module)],
            num_heads={module.qkv: module.num_heads for module in attention},
            prune_num_heads=heads,
            prune_head_dims=not heads,
            in_channel_groups={},
            out_channel_groups={},
        )
        if criterion == "Taylor":
            model.zero_grad()
            for x, y in labelled:
                F.cross_entropy(model(x), y, reduction="sum").backward()
        pruner.step()
    model.zero_grad()
    for module in attention:
        module.num_heads = pruner.num_heads[module.qkv]
    for module in even:
        module.head_dim = len(module.qkv.weight) // (3 * module.num_heads)
        module.attn_dim = module.num_heads * module.head_dim
    return model


def ratio(model: Any, input: Sequence[int], share: float) -> float:
    """The ratio at which the macs come nearest to a share of the dense model's; widths follow from it alone.

    Args:
        model: dense, from timm.
        input: channels, height, width.
        share: of the macs that stay.
    """
    dense = measure(model, input).macs
    low, high, reached = 0.0, 1.0, {0.0: 1.0}
    for _ in range(9):
        middle = (low + high) / 2
        reached[middle] = measure(narrowed(model, input, middle), input).macs / dense
        low, high = (middle, high) if reached[middle] > share else (low, middle)
    return min(reached, key=lambda at: abs(reached[at] - share))
