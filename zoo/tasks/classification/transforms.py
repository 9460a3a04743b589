"""Images as a classifier takes them: timm's transforms, after the one door for pixels."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from zoo.errors import DataError
from zoo.structure.sources import timm
from zoo.tasks.loader import Transform, generators_kept
from zoo.tasks.pixels import Pixels, decode, mode_of

MODES = {1: "L", 3: "RGB"}


def evaluation_transform(pretrained_cfg: Mapping[str, Any]) -> Transform:
    """The preprocessing a model was evaluated with, from timm's description of its input.

    Args:
        pretrained_cfg: timm's keys: input_size ([C, H, W]), interpolation, mean, std, crop_pct, crop_mode.

    Returns:
        A function from an image of any mode and size, or what `zoo.tasks.pixels.decode` takes, to a tensor [C, H, W];
        it raises a DataError that names what can't be decoded.

    Raises:
        DataError: the model takes neither grey nor colour images.
    """
    return _after_mode(pretrained_cfg)


def training_transform(pretrained_cfg: Mapping[str, Any], augment: Mapping[str, Any]) -> Transform:
    """Random crops, flips and colours around the same size, mean and std as in evaluation.

    Args:
        pretrained_cfg: as for `evaluation_transform`.
        augment: arguments of `timm.data.create_transform`: scale, ratio, hflip, auto_augment, color_jitter, ...

    Returns:
        A function from an image to a tensor [C, H, W], random through the global generators.

    Raises:
        DataError: timm has no such augmentation, or the model takes neither grey nor colour images.
    """
    taken = set(inspect.signature(timm().data.create_transform).parameters)
    known = taken - {"is_training", "use_prefetcher", "separate"}
    if unknown := sorted(set(augment) - known):
        raise DataError(f"augment: unknown {', '.join(unknown)}; possible are: {', '.join(sorted(known))}")
    return _after_mode(pretrained_cfg, is_training=True, **augment)


@dataclass(frozen=True)
class Views:
    """What each of several networks sees of an image: the same crop, flip and colours, each at its own size.

    Every transform begins with the same state of the generators, and what they draw doesn't depend on the size.

    Args:
        transforms: from `training_transform`, of the networks; the first one leaves the generators where it would
            alone.
    """

    transforms: Sequence[Transform]

    def __call__(self, image: Pixels) -> list[Tensor]:
        """Image → a tensor [C, H, W] for each network."""
        if {mode_of(transform) for transform in self.transforms} == {"RGB"}:
            image = decode(image)  # once for all
        others = []
        for transform in self.transforms[1:]:
            with generators_kept():
                others.append(transform(image))
        return [self.transforms[0](image), *others]


def _after_mode(pretrained_cfg: Mapping[str, Any], **settings: Any) -> Transform:
    config = timm().data.resolve_data_config(pretrained_cfg=dict(pretrained_cfg))
    channels = config["input_size"][0]
    mean, std = list(config["mean"]), list(config["std"])
    if channels not in MODES or not len(mean) == len(std) == channels:
        raise DataError(
            f"pretrained_cfg: expected 1 or 3 channels, a mean and a std for each, found input_size "
            f"{list(config['input_size'])}, mean {mean} and std {std}; set input_size, mean and std"
        )
    transform = timm().data.create_transform(**{**config, **settings})
    transform.transforms.insert(0, partial(decode, mode=MODES[channels]))
    return transform  # type: ignore[no-any-return]
