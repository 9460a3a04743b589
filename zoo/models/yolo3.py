"""YOLOv3: a detector whose heads place boxes within the cells of three maps and multiply anchors.

    backbone    the maps of strides 8, 16, 32
    from the last to the first: 1x1 and 3x3 convolutions in turn, five of them · aside a 3x3 and the head, a 1x1
                and on to the next: a 1x1, twice the side, beside the backbone's map
    heads       of every anchor 4 of the box, the object and the classes

All convolutions but the heads have batch norms and leaky ReLU.

Source: Redmon, Farhadi, YOLOv3: An Incremental Improvement, https://arxiv.org/abs/1804.02767
        https://github.com/dmlc/gluon-cv/blob/master/gluoncv/model_zoo/yolo/yolo3.py (the sizes)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm import create_model
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.classifier import imagenet, stages
from zoo.models.detector import GLUON, UNSEEN, Detector, image_size
from zoo.models.label_names import label_names
from zoo.models.mobilenetv1 import mobilenetv1

SLOPE = 0.1  # of leaky ReLU
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "darknet53": partial(create_model, "darknet53", act_layer=partial(nn.LeakyReLU, SLOPE)),
    "mobilenet1_0": lambda **args: mobilenetv1(100, **args),
}
WIDTHS = (128, 256, 512)  # of the 1x1 convolutions; the 3x3 have twice as many
STRIDES = (8, 16, 32)
ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)


class YOLOv3(Detector):
    """A YOLOv3.

    Args:
        architecture: its name.
        backbone: a key of `BACKBONES`.
        data: a key of `BY_DATA` whose classes it is published for.
        num_classes: of the objects.
        in_chans: channels of the images.
        img_size: side of the images, or height and width, multiples of 32; anchors stay as large.
    """

    kept_outputs = 5  # of an anchor: the box and the object
    unseen = UNSEEN

    def __init__(
        self,
        architecture: str,
        backbone: str,
        data: str,
        /,
        num_classes: int = 20,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 416,
    ) -> None:
        super().__init__()
        self.backbone: nn.Module = BACKBONES[backbone](num_classes=0, in_chans=in_chans)
        about: Any = self.backbone
        widths = [info["num_chs"] for info in about.feature_info[-3:]]
        inputs = [widths[0] + WIDTHS[0], widths[1] + WIDTHS[1], widths[2]]
        self.blocks = nn.ModuleList(map(_five, inputs, WIDTHS))
        self.tips = nn.ModuleList(_conv(width, 2 * width, 3) for width in WIDTHS)
        self.transitions = nn.ModuleList(_conv(width, width // 2, 1) for width in WIDTHS[1:])
        self.heads = nn.ModuleList(
            self.outputs(2 * width, len(anchors), num_classes, 1)
            for width, anchors in zip(WIDTHS, ANCHORS, strict=True)
        )
        self.feature_info = stages({f"tips.{i}": 2 * width for i, width in enumerate(WIDTHS)}, STRIDES[0])
        self.configure_(
            architecture,
            num_classes,
            (in_chans, *image_size(img_size, STRIDES[-1])),
            f"backbone.{about.pretrained_cfg['first_conv']}",
            [f"heads.{i}" for i in range(len(STRIDES))],
            {
                "decode": "yolo3",
                "strides": STRIDES,
                "anchors": ANCHORS,
                **GLUON,
            },
            label_names=label_names(data, num_classes),
            **imagenet(in_chans),
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] → maps of strides 8, 16 and 32."""
        maps = self.backbone.forward_intermediates(x, 3, intermediates_only=True)  # type: ignore[operator]
        x, tips = maps[-1], []
        for i in reversed(range(len(STRIDES))):
            x = self.blocks[i](x)
            tips.append(self.tips[i](x))
            if i:
                x = F.interpolate(self.transitions[i - 1](x), scale_factor=2.0, mode="nearest")
                x = torch.cat([x, maps[i - 1]], 1)
        return tips[::-1]


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE))


def _five(inputs: int, width: int) -> nn.Sequential:
    reads = (inputs, *(width, 2 * width) * 2)
    return nn.Sequential(*(_conv(n, 2 * width if i % 2 else width, 3 if i % 2 else 1) for i, n in enumerate(reads)))
