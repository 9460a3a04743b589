"""Detector: what the detectors of this room have in common, in timm's manners.

    feature maps of several strides → of each a head, a tensor [B, channels, H, W]

The heads stay raw: `pretrained_cfg["detector"]` says what they mean, and `zoo.models.heads` makes boxes of them. A
network says its maps and its heads, and how a head is given other classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models._features import feature_take_indices  # not among timm.models' exported names
from torch import Tensor, nn

OBJECT_DETECTION = "object-detection"
UNSEEN = -math.log(99)
"""The logit of a class before anything was learnt: it is seen at one place of a hundred.

Source: Lin et al., Focal Loss for Dense Object Detection, section 4.1, https://arxiv.org/abs/1708.02002
"""
GLUON = {"resize": "stretch", "score": 0.01, "iou": 0.45, "candidates": 400, "most": 100}
"""GluonCV's settings of its detectors, whatever their heads."""


class Detector(nn.Module):
    """A network of maps and heads.

    A subclass calls `configure_` once its layers are there, and writes `maps`.
    """

    heads: nn.ModuleList  # of each map what reads it
    kept_outputs = 0  # of each anchor, before its classes, in the layers that tell these apart: its box, say
    unseen = 0.0  # the logit of a class before anything was learnt
    published_names: Mapping[str, str] = {}  # modules → what published weights call them
    num_classes: int

    def configure_(
        self,
        architecture: str,
        num_classes: int,
        input_size: tuple[int, int, int],
        first_conv: str,
        classifier: Sequence[str],
        detector: Mapping[str, Any],
        **more: Any,
    ) -> None:
        """Say of the network what timm's say, and what its heads mean.

        Args:
            architecture: its name.
            num_classes: of the objects.
            input_size: channels, height and width of an image.
            first_conv: the layer that reads it.
            classifier: the layers that tell classes apart.
            detector: settings of `zoo.models.heads`, as plain data.
            more: of `pretrained_cfg`, such as mean and std; None leaves a key out.

        Raises:
            ValueError: there are no classes.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected 1 or more: a detector has no output without them")
        self.num_classes = num_classes
        self.pretrained_cfg = self.default_cfg = {
            "architecture": architecture,
            "task": OBJECT_DETECTION,
            "num_classes": num_classes,
            "input_size": input_size,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.0,) * input_size[0],
            "std": (1.0,) * input_size[0],
            "first_conv": first_conv,
            "classifier": tuple(classifier),
            "detector": dict(detector),
            **{key: value for key, value in more.items() if value is not None},
        }

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] → the feature maps that the heads read."""
        raise NotImplementedError

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """The layers that tell classes apart."""
        return tuple(self.get_submodule(path) for path in self.pretrained_cfg["classifier"])

    def reset_classifier(self, num_classes: int) -> None:
        """Give the layers that tell classes apart others, randomly initialised; what stands before them is kept."""
        for path, old in zip(self.pretrained_cfg["classifier"], self.get_classifier(), strict=True):
            convs = [each for each in old.modules() if isinstance(each, nn.Conv2d)]  # several where it is factored
            anchors, first = convs[-1].out_channels // (self.kept_outputs + self.num_classes), convs[0]
            new = self.outputs(first.in_channels, anchors, num_classes, first.kernel_size[0])
            if convs == [old]:
                for mine, its in zip(new.parameters(), old.parameters(), strict=True):
                    by_anchor = (each.data.unflatten(0, (anchors, -1))[:, : self.kept_outputs] for each in (mine, its))
                    next(by_anchor).copy_(next(by_anchor))
            self.set_submodule(path, new)
        self.num_classes = num_classes

    def outputs(self, inputs: int, anchors: int, num_classes: int, kernel: int) -> nn.Conv2d:
        """A layer that tells classes apart, as it begins."""
        layer = nn.Conv2d(inputs, anchors * (self.kept_outputs + num_classes), kernel, padding=kernel // 2)
        assert layer.bias is not None
        nn.init.constant_(layer.bias.data.unflatten(0, (anchors, -1))[:, self.kept_outputs :], self.unseen)
        return layer

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images [B, C, H, W] → the feature maps that the heads read."""
        return tuple(self.maps(x))

    def forward_head(self, x: Sequence[Tensor], pre_logits: bool = False) -> tuple[Tensor, ...]:
        """Feature maps → the raw heads, or the maps themselves."""
        return tuple(x) if pre_logits else tuple(head(each) for head, each in zip(self.heads, x, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images [B, C, H, W] → the raw heads, each [B, channels, H/stride, W/stride]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, intermediates_only: bool = False, **_: Any
    ) -> Any:
        """The feature maps that `indices` names, as timm's models give them."""
        maps = self.maps(x)
        wanted = [maps[i] for i in feature_take_indices(len(maps), indices)[0]]
        return wanted if intermediates_only else (maps[-1], wanted)


def image_size(img_size: int | Sequence[int], multiple: int) -> tuple[int, int]:
    """Height and width, of which one number says both.

    Raises:
        ValueError: they aren't multiples of so many pixels.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if any(side < multiple or side % multiple for side in (height, width)):
        raise ValueError(f"img_size is {img_size}, expected multiples of {multiple}")
    return height, width
