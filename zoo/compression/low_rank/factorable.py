"""Factorable: which layers can become two in sequence, and from which rank on that saves nothing."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compression.exclusion import Patterns, excluded
from zoo.structure.plan import Rank

PLAIN = "it is grouped or transposed, or computes something else than two layers would"
SHARED = "its weight is another layer's too"
UNCALLED = "the model doesn't call it"
ASKED = "others read its weight, which two layers don't have"
KERNEL = "its kernel is larger than 1 by 1"


def factorable(model: nn.Module, image: Tensor) -> list[str]:
    """Paths of the layers that `Factor` can replace, in the model's order; found by running the model once.

    Args:
        model: in eval mode; left as it was.
        image: images that it takes [B, C, H, W].
    """
    return [path for path, obstacle in examined(model, image).items() if not obstacle]


def examined(model: nn.Module, image: Tensor) -> dict[str, str]:
    """Path of each layer with a weight → why two layers can't stand for it, empty where they can.

    They can't where it is grouped or transposed, computes something else than its class says (a standardised weight,
    padding to "same" by timm), shares a parameter, isn't called, or others read what two in sequence don't have
    (`F.linear(x, self.qkv.weight)` in timm's beit, eva and swinv2).

    Args:
        model: in eval mode; left as it was.
        image: images that it takes [B, C, H, W].
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = Counter(p for m in modules.values() for p in m._parameters.values() if p is not None)
    uses = Counter(modules.values())
    layers = {path: module for path, module in modules.items() if path and _matrix(module) is not None}
    found = {
        path: PLAIN
        if not _plain(layer)
        else SHARED
        if uses[layer] > 1 or any(owners[p] > 1 for p in layer.parameters())
        else ""
        for path, layer in layers.items()
    }
    alone = {path: _Alone(layers[path]) for path, obstacle in found.items() if not obstacle}
    places = {path: (modules[path.rpartition(".")[0]], path.rpartition(".")[2]) for path in alone}
    try:
        for path, (parent, name) in places.items():
            setattr(parent, name, alone[path])
        with torch.no_grad():
            model(image)
    finally:
        for path, (parent, name) in places.items():
            setattr(parent, name, layers[path])
    return found | {path: UNCALLED if not each.called else ASKED if each.asked else "" for path, each in alone.items()}


def _matrix(module: nn.Module) -> Tensor | None:
    """The weight of a layer that has one of two dimensions at least."""
    weight = module._parameters.get("weight")
    return weight if weight is not None and weight.ndim > 1 else None


class _Alone(nn.Sequential):
    """A layer in sequence with nothing: it has no more of a layer than two in sequence, and notes who asks for more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.called = self.asked = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        self.asked |= len(args) != 1 or bool(kwargs)
        return self[0](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._modules.get("0"), name)
        self.asked = True
        return value


def _plain(layer: Any) -> bool:
    kind = type(layer)
    if isinstance(layer, nn.Linear):
        computes = kind.forward is nn.Linear.forward
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        computes = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    else:
        return False
    weight = layer._parameters.get("weight")
    return computes and weight is not None and weight.is_floating_point()


def chosen(model: nn.Module, paths: Iterable[str], exclude: Patterns, only: Patterns, method: str) -> list[str]:
    """Those paths of layers that aren't excluded.

    Raises:
        UnknownName: `exclude` or `only` names no layer of the model.
    """
    gone = excluded(model, exclude, only, method)
    return [path for path in paths if f"{path}.weight" not in gone]


def matrices(model: nn.Module, image: Tensor, exclude: Patterns, only: Patterns, method: str) -> list[str]:
    """Those factorable layers, but the excluded, that multiply each position by one matrix: Linear and 1 × 1.

    Args:
        model: in eval mode; left as it was.
        image: images that it takes [B, C, H, W].
        exclude: as in `exclusion`.
        only: likewise.
        method: that is asked, for the message.

    Raises:
        UnknownName: `exclude` or `only` names no layer of the model.
    """
    paths = chosen(model, factorable(model, image), exclude, only, method)
    return [path for path in paths if not _spatial(model.get_submodule(path))]


def _spatial(layer: Any) -> bool:
    return getattr(layer, "kernel_size", (1, 1)) != (1, 1)


def left_whole(method: str, kernels: bool, model: nn.Module, image: Tensor, how: Any) -> dict[str, str]:
    """Path of each layer that a method doesn't factor → why.

    Args:
        method: its name.
        kernels: whether it factors convolutions larger than 1 × 1.
        model: in eval mode; left as it was.
        image: images that it takes [B, C, H, W].
        how: the method's declaration.
    """
    found = examined(model, image)
    if not kernels:
        found |= {path: KERNEL for path, why in found.items() if not why and _spatial(model.get_submodule(path))}
    whole = excluded(model, how.exclude, how.only, method)
    return {path: whole.get(f"{path}.weight", why) for path, why in found.items() if f"{path}.weight" in whole or why}


def grows(layer: Any, rank: Rank) -> bool:
    """Whether the two layers would have at least as many params, or as many macs, as the one.

    The last factor alone has a stride where it keeps the kernel: the first then runs on every input position.
    """
    m, n = layer.weight.shape[:2]
    kernel, stride = layer.weight[0, 0].numel(), 1
    first, last = rank.rank * n, rank.rank * m
    if isinstance(layer, nn.Conv2d) and rank.spatial == "last":
        last, stride = last * kernel, layer.stride[0] * layer.stride[1]
    else:
        first *= kernel
    return bool(first * stride + last >= m * n * kernel)
