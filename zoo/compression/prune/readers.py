"""Readers: the layers that read a group's channels, and their weights once units of it are gone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compression.activations import Draw, observe, patches, rows
from zoo.compression.channels.groups import Analysis, Group
from zoo.compression.prune.obs import inputs
from zoo.compression.prune.refit import Moments, columns, fit

AGREES = 0.01  # of a layer's largest output, how far it may be off what its weight gives: half precision's rounding

Fits = Mapping[str, tuple[Tensor, Tensor]]
"""Reader → its weight W', zero where it reads what is cut, and the mean μ of what it reads."""


def readers_of(groups: Sequence[Group]) -> list[str]:
    """Paths of the readers of some groups, each once."""
    return list(dict.fromkeys(path for group in groups for path in group.readers))


def fittable(model: nn.Module, analysis: Analysis, image: Tensor) -> Analysis:
    """The analysis with those readers apart that can't be fitted.

    These are layers that aren't called (timm's beit reads `qkv.weight`), recurrent ones, convolutions that aren't
    two-dimensional, and all whose outputs aren't the product of their weight and what `patches` says that they read.

    Args:
        model: in eval mode.
        analysis: of the model.
        image: one batch that it takes, [B, C, H, W].
    """
    agrees: dict[str, bool] = {}

    def compare(path: str, layer: Any, x: Tensor, y: Tensor, draw: Draw) -> None:
        product = patches(layer, x.float(), Draw(range(len(x)), x.numel())) @ layer.weight.float().flatten(1).T
        own = rows(layer, y.float()) if layer.bias is None else rows(layer, y.float()) - layer.bias
        agrees[path] = agrees.get(path, True) and bool((product - own).abs().max() <= AGREES * own.abs().max())

    every = {path: model.get_submodule(path) for path in readers_of(analysis.groups)}
    layers = {path: layer for path, layer in every.items() if isinstance(layer, nn.Linear | nn.Conv2d)}
    with torch.no_grad():
        observe(model, layers, [image], after=compare)
    groups = []
    for group in analysis.groups:
        fitted, unfitted = (tuple(p for p in group.readers if agrees.get(p, False) is can) for can in (True, False))
        groups.append(replace(group, readers=fitted, unfitted=unfitted))
    return replace(analysis, groups=tuple(groups))


def fits(
    tensors: Mapping[str, Tensor],
    groups: Sequence[Group],
    units: Sequence[Tensor],
    seen: Mapping[str, Moments],
    ridge: float,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Fit readers to the units that stay.

    Args:
        tensors: path → tensor of the dense model, on the CPU.
        groups: as analysed.
        units: of each group, those that stay [k].
        seen: moments of the readers that shall be fitted; those of others are left alone.
        ridge: as a share of the diagonal.
    """
    left: dict[str, Tensor] = {}
    for group, kept in zip(groups, units, strict=True):
        gone = torch.ones(group.units, dtype=torch.bool).index_fill(0, kept, False)
        for path in group.readers:
            if path in seen and gone.any():
                stays = left.setdefault(path, torch.ones(tensors[f"{path}.weight"].shape[1], dtype=torch.bool))
                stays[inputs(group, path)[gone].flatten()] = False
    fitted = {}
    for path, stays in left.items():
        weight = tensors[f"{path}.weight"]
        kept = columns(weight, stays.nonzero()[:, 0])
        narrowed = fit(weight, seen[path], kept, ridge)
        whole = torch.zeros_like(weight).flatten(1).index_copy(1, kept, narrowed.to(weight.dtype))
        fitted[path] = whole.view_as(weight), seen[path].mean
    return fitted


def written(analysis: Analysis, tensors: Mapping[str, Tensor], fitted: Fits) -> dict[str, Tensor]:
    """The dense tensors with what was fitted in place of weights, and of the biases or the means of norms."""
    whole = dict(tensors)
    for path, (weight, mean_read) in fitted.items():
        bias, mean = f"{path}.bias", analysis.normalised.get(path)
        shift = (tensors[f"{path}.weight"] - weight).flatten(1).double() @ mean_read
        whole[f"{path}.weight"] = weight
        if bias in tensors:
            whole[bias] = (tensors[bias].double() + shift).to(tensors[bias].dtype)
        elif mean is not None:
            whole[mean] = (tensors[mean].double() - shift).to(tensors[mean].dtype)
    return whole
