"""YOLOv8: a detector without anchors, whose heads give a distribution of the distances to a box's sides.

    backbone    stem · of strides 4, 8, 16, 32 a convolution that halves the side and a C2f · SPPF
    neck        down to stride 8 and up to 32 again, each time beside the maps that have that size already
    heads       of strides 8, 16, 32 two branches of two 3x3 convolutions and a 1x1: 4·reg_max of the distances, and the
                classes, side by side

A size multiplies the depths (3, 6, 6, 3; in the neck 3) and the widths (64, 128, 256, 512, 1024, at most so many),
which become multiples of 8. Written from the counts and shapes that are public and the blocks of keras-cv, for weights
of your own: the network's authors license theirs, and what is trained from them, as agpl-3.0.

Source: https://github.com/keras-team/keras-cv/tree/master/keras_cv/src/models/object_detection/yolo_v8 (the blocks)
        Sohan, Sai Ram, Rami Reddy, A Review on YOLOv8 and Its Advancements
        Li et al., Generalized Focal Loss, https://arxiv.org/abs/2006.04388 (the distribution of distances)
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.classifier import stages
from zoo.models.detector import UNSEEN, Detector, image_size
from zoo.models.label_names import label_names

WIDTHS = (64, 128, 256, 512, 1024)  # of strides 2, 4, 8, 16, 32
DEPTHS = (3, 6, 6, 3)  # of strides 4, 8, 16, 32
STRIDES = (8, 16, 32)  # of the heads
SIZES: dict[str, dict[str, Any]] = {
    "yolov8n": {"depth": 1 / 3, "width": 0.25, "class_width": 80},
    "yolov8s": {"depth": 1 / 3, "width": 0.5},
    "yolov8m": {"depth": 2 / 3, "width": 0.75, "max_width": 768},
    "yolov8l": {"depth": 1.0, "width": 1.0, "max_width": 512},
    "yolov8x": {"depth": 1.0, "width": 1.25, "max_width": 512},
}
"""What the published sizes are, as arguments of `YOLOv8`."""

PUBLISHED = {
    "stem": "model.0",
    **{f"stage{i}.{j}": f"model.{2 * i - 3 + j}" for i in (2, 3, 4, 5) for j in (0, 1)},
    "stage5.2": "model.9",
    "topdown4": "model.12",
    "topdown3": "model.15",
    "down3": "model.16",
    "bottomup4": "model.18",
    "down4": "model.19",
    "bottomup5": "model.21",
    **{f"heads.{i}.box": f"model.22.cv2.{i}" for i in range(len(STRIDES))},
    **{f"heads.{i}.classes": f"model.22.cv3.{i}" for i in range(len(STRIDES))},
}
"""Our modules → what published weights call them; within a module names are the same."""


class Conv(nn.Module):
    """A convolution, a batch norm and SiLU.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel.
        stride: of the convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, inputs, H, W] → [B, outputs, H/stride, W/stride]."""
        return F.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, in the backbone beside a shortcut.

    Args:
        width: channels in, within and out.
        shortcut: whether the input is added.
    """

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.shortcut = Conv(width, width, 3), Conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, width, H, W] → the same."""
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y  # type: ignore[no-any-return]


class C2f(nn.Module):
    """Bottlenecks in a row on the last part of a 1x1 convolution, and a 1x1 convolution of it and of all they give.

        a, b = split(cv1(x)) · m1 = m[0](b), m2 = m[1](m1), ... · cv2(cat(a, b, m1, m2, ...))

    Both parts are as wide when nothing is pruned; where they aren't, `width` is that of the last.

    Args:
        inputs: channels in.
        outputs: channels out.
        depth: bottlenecks.
        shortcut: whether they have shortcuts.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        self.width = outputs // 2
        self.cv1 = Conv(inputs, 2 * self.width, 1)
        self.cv2 = Conv((2 + depth) * self.width, outputs, 1)
        self.m = nn.ModuleList(Bottleneck(self.width, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, inputs, H, W] → [B, outputs, H, W]."""
        x = self.cv1(x)
        maps = list(x.split((x.shape[1] - self.width, self.width), 1))
        for block in self.m:
            maps.append(block(maps[-1]))
        return self.cv2(torch.cat(maps, 1))  # type: ignore[no-any-return]


class SPPF(nn.Module):
    """Spatial pyramid pooling: what is largest within 5, 9 and 13 pixels beside the maps, between two 1x1 convolutions.

    Args:
        width: channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2, 1), Conv(4 * (width // 2), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, width, H, W] → the same."""
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        return self.cv2(torch.cat(maps, 1))  # type: ignore[no-any-return]


class Head(nn.Module):
    """Two branches that read the same maps: one for the boxes, one for the classes.

    Args:
        inputs: channels in.
        box_width: channels of the first branch.
        class_width: channels of the second.
        reg_max: R, bins of each distance.
        classes: the second branch's last layer, of C classes.
    """

    def __init__(self, inputs: int, box_width: int, class_width: int, reg_max: int, classes: nn.Conv2d) -> None:
        super().__init__()
        self.box = _branch(inputs, box_width, nn.Conv2d(box_width, 4 * reg_max, 1))
        self.classes = _branch(inputs, class_width, classes)
        nn.init.ones_(self.box[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, inputs, H, W] → [B, 4R + C, H, W]."""
        return torch.cat([self.box(x), self.classes(x)], 1)


def _branch(inputs: int, width: int, last: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(Conv(inputs, width, 3), Conv(width, width, 3), last)


class YOLOv8(Detector):
    """A YOLOv8 of any size.

    Args:
        architecture: its name.
        num_classes: of the objects.
        in_chans: channels of the images.
        img_size: side of the images, or height and width, multiples of 32.
        depth: multiplies the bottlenecks of every C2f.
        width: multiplies the channels.
        max_width: of the channels before they are multiplied.
        class_width: channels of the heads' branch for the classes; None is as many as the maps of stride 8 have.
        reg_max: bins of each distance: boxes reach at most reg_max - 1 strides to each side of a point.

    >>> sum(parameter.numel() for parameter in YOLOv8("yolov8n", **SIZES["yolov8n"]).parameters())
    3157184
    """

    unseen = UNSEEN
    published_names = PUBLISHED

    def __init__(
        self,
        architecture: str,
        /,
        num_classes: int = 80,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 640,
        depth: float = 1.0,
        width: float = 1.0,
        max_width: int = 1024,
        class_width: int | None = None,
        reg_max: int = 16,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (8 * math.ceil(min(each, max_width) * width / 8) for each in WIDTHS)
        n2, n3, n4, n5 = (max(1, round(each * depth)) for each in DEPTHS)
        self.stem = Conv(in_chans, c1, 3, 2)
        self.stage2 = nn.Sequential(Conv(c1, c2, 3, 2), C2f(c2, c2, n2, True))
        self.stage3 = nn.Sequential(Conv(c2, c3, 3, 2), C2f(c3, c3, n3, True))
        self.stage4 = nn.Sequential(Conv(c3, c4, 3, 2), C2f(c4, c4, n4, True))
        self.stage5 = nn.Sequential(Conv(c4, c5, 3, 2), C2f(c5, c5, n5, True), SPPF(c5))
        self.topdown4 = C2f(c5 + c4, c4, n5, False)
        self.topdown3 = C2f(c4 + c3, c3, n5, False)
        self.down3, self.bottomup4 = Conv(c3, c3, 3, 2), C2f(c3 + c4, c4, n5, False)
        self.down4, self.bottomup5 = Conv(c4, c4, 3, 2), C2f(c4 + c5, c5, n5, False)
        box_width, class_width = max(16, c3 // 4, 4 * reg_max), class_width or c3
        self.heads = nn.ModuleList(
            Head(c, box_width, class_width, reg_max, self.outputs(class_width, 1, num_classes, 1)) for c in (c3, c4, c5)
        )
        self.feature_info = stages({"topdown3": c3, "bottomup4": c4, "bottomup5": c5}, STRIDES[0])
        self.configure_(
            architecture,
            num_classes,
            (in_chans, *image_size(img_size, STRIDES[-1])),
            "stem.conv",
            [f"heads.{i}.classes.2" for i in range(len(STRIDES))],
            {
                "decode": "yolov8",
                "strides": STRIDES,
                "reg_max": reg_max,
                "resize": "letterbox",
                "score": 0.001,
                "iou": 0.7,
                "candidates": 30_000,
                "most": 300,
            },
            label_names=label_names("coco", num_classes),
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] → the neck's maps of strides 8, 16 and 32."""
        p3 = self.stage3(self.stage2(self.stem(x)))
        p4 = self.stage4(p3)
        p5 = self.stage5(p4)
        top4 = self.topdown4(torch.cat([_doubled(p5), p4], 1))
        top3 = self.topdown3(torch.cat([_doubled(top4), p3], 1))
        bottom4 = self.bottomup4(torch.cat([self.down3(top3), top4], 1))
        bottom5 = self.bottomup5(torch.cat([self.down4(bottom4), p5], 1))
        return [top3, bottom4, bottom5]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
