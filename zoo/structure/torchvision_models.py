"""torchvision's classifiers, described as timm describes its own, so that whatever reads one reads the other.

What torchvision's weights say of themselves, in code and not in files, becomes `pretrained_cfg`: sizes, preprocessing,
names of the classes.
"""

import contextlib
import importlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_WITH_HELP = ("googlenet", "inception_v3")  # of heads that only training needs
_FIXED = ("vit", "maxvit")  # whose tensors hold the size of the image
_OTHERS = {"https://github.com/facebookresearch/SWAG/blob/main/LICENSE": "cc-by-nc-4.0"}


def library() -> Any:
    """Import torchvision's models."""
    return importlib.import_module("torchvision.models")


def names() -> list[str]:
    """Torchvision's classifiers."""
    listed: list[str] = library().list_models(module=library())
    return listed


def weights(architecture: str) -> dict[str, Any]:
    """Tag → torchvision's description of weights; of those without a classifier nothing."""
    return {each.name: each for each in library().get_model_weights(architecture) if each.meta["categories"]}


def default(architecture: str) -> str:
    """The tag that torchvision takes where none is said."""
    name: str = library().get_model_weights(architecture).DEFAULT.name
    return name


def create(architecture: str, tag: str | None, in_chans: int = 3, **args: Any) -> nn.Module:
    """Build a model with the values of its own initialiser.

    Args:
        architecture: as torchvision names it.
        tag: of the weights that it shall fit; None has the sizes that the architecture has by itself.
        in_chans: channels of an image, of which torchvision's have three.
        args: as torchvision's function takes them.
    """
    known = weights(architecture)
    told = known[tag or next(iter(known))]
    usual: dict[str, Any] = {"aux_logits": False, "init_weights": True} if architecture in _WITH_HELP else {}
    if tag:  # as torchvision's own functions do where they load weights
        usual |= {"num_classes": len(told.meta["categories"])}
        usual |= {"transform_input": True} if architecture in _WITH_HELP else {}
        usual |= {"image_size": told.meta["min_size"][0]} if architecture.startswith("vit") else {}
    with _Computed() if architecture.startswith("regnet") else contextlib.nullcontext():
        model: nn.Module = library().get_model_builder(architecture)(**{**usual, **args})
    convolutions = ((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    first_conv, conv = next(convolutions)
    if in_chans != conv.in_channels:
        same: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "bias": conv.bias is not None}
        size: Any = conv.kernel_size
        model.set_submodule(first_conv, nn.Conv2d(in_chans, conv.out_channels, size, **same))
    classifier, head = next(_heads(model))
    classes = head.weight.shape[0]
    model.num_classes = classes  # type: ignore[assignment]
    config = _config(told, tag, in_chans, classes, getattr(model, "image_size", None))
    config |= {"fixed_input_size": architecture.startswith(_FIXED), "first_conv": first_conv, "classifier": classifier}
    model.pretrained_cfg = model.default_cfg = config  # type: ignore[assignment]
    return model


class _Computed(TorchFunctionMode):
    """Lets a network compute its widths while it is built on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "cpu"} if func in (torch.arange, torch.tensor) else {})})


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Paths and layers that could be the classifier, which comes last."""
    for path, module in reversed([*model.named_modules()]):
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield path, module


def _config(told: Any, tag: str | None, channels: int, classes: int, side: int | None) -> dict[str, Any]:
    seen, names = told.transforms(), told.meta["categories"]
    (crop,), (resized,) = seen.crop_size, seen.resize_size
    share = crop / resized
    while math.floor(crop / share) < resized:  # as timm computes the side that it resizes to
        share = math.nextafter(share, 0)
    config = {
        "input_size": (channels, side or crop, side or crop),
        "mean": tuple(seen.mean[i % 3] for i in range(channels)),
        "std": tuple(seen.std[i % 3] for i in range(channels)),
        "crop_pct": share,
        "crop_mode": "center",
        "interpolation": seen.interpolation.value,
        "num_classes": classes,
    }
    if tag is None:
        return config
    config |= {"tag": tag, "license": _OTHERS.get(told.meta.get("license"), "bsd-3-clause")}
    return config | ({"label_names": tuple(names)} if classes == len(names) else {})
