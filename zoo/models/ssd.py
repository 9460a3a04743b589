"""SSD: a detector whose heads tell how a box differs from anchors that are laid over every place of six maps.

    backbone    the maps of strides 16 and 32
    four times  1x1 convolution · 3x3 convolution of stride 2, each with batch norm and ReLU
    heads       of each map a 3x3 convolution: of every anchor 4 differences, the background and the classes

GluonCV's for images of 512 pixels, whose backbones stand in for the paper's VGG. It has two convolutions where one is
here, of the boxes and of the classes: their filters lie side by side.

Source: Liu et al., SSD: Single Shot MultiBox Detector, https://arxiv.org/abs/1512.02325
        https://github.com/dmlc/gluon-cv/tree/master/gluoncv/model_zoo/ssd (presets.py, anchor.py: sizes and ratios)
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.models import gluon_resnet
from zoo.models.classifier import imagenet, stages
from zoo.models.detector import GLUON, Detector, image_size
from zoo.models.label_names import label_names
from zoo.models.mobilenetv1 import mobilenetv1

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "mobilenet1_0": lambda **args: mobilenetv1(100, **args),
    "resnet50_v1": lambda **args: gluon_resnet.v1(50, **args),
}
FILTERS = (512, 512, 256, 256)  # of the maps behind the backbone's
LEAST = 128  # channels of a 1x1 convolution
STEPS = (16, 32, 64, 128, 256, 512)
SIZES = (51.2, 102.4, 189.4, 276.4, 363.52, 450.6, 492.0)
_FEW, _MANY = (1.0, 2.0, 1 / 2), (1.0, 2.0, 1 / 2, 3.0, 1 / 3)
RATIOS = (_FEW, _MANY, _MANY, _MANY, _FEW, _FEW)
ANCHORS = tuple(len(ratios) + 1 for ratios in RATIOS)


class SSD(Detector):
    """An SSD for images of 512 pixels.

    Args:
        architecture: its name.
        backbone: a key of `BACKBONES`.
        data: a key of `BY_DATA` whose classes it is published for.
        num_classes: of the objects.
        in_chans: channels of the images.
        img_size: side of the images, or height and width, multiples of 32; anchors stay as large.
    """

    kept_outputs = 5  # of an anchor: the box and the background

    def __init__(
        self,
        architecture: str,
        backbone: str,
        data: str,
        /,
        num_classes: int = 20,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 512,
    ) -> None:
        super().__init__()
        self.backbone: nn.Module = BACKBONES[backbone](num_classes=0, in_chans=in_chans)
        about: Any = self.backbone
        last = about.feature_info[-2:]
        widths = [*(info["num_chs"] for info in last), *FILTERS]
        self.extras = nn.ModuleList(map(_halved, widths[1:-1], FILTERS))
        self.heads = nn.ModuleList(
            self.outputs(width, anchors, num_classes, 3) for width, anchors in zip(widths, ANCHORS, strict=True)
        )
        modules = [f"backbone.{info['module']}" for info in last] + [f"extras.{i}" for i in range(len(FILTERS))]
        self.feature_info = stages(dict(zip(modules, widths, strict=True)), STEPS[0])
        self.configure_(
            architecture,
            num_classes,
            (in_chans, *image_size(img_size, STEPS[1])),
            f"backbone.{about.pretrained_cfg['first_conv']}",
            [f"heads.{i}" for i in range(len(STEPS))],
            {
                "decode": "ssd",
                "steps": STEPS,
                "sizes": SIZES,
                "ratios": RATIOS,
                "variances": (0.1, 0.1, 0.2, 0.2),
                **GLUON,
            },
            label_names=label_names(data, num_classes),
            **imagenet(in_chans),
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] → maps of strides 16, 32, 64, 128, 256 and 512."""
        maps: list[Tensor] = self.backbone.forward_intermediates(x, 2, intermediates_only=True)  # type: ignore[operator]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


def _halved(inputs: int, outputs: int) -> nn.Sequential:
    within = max(LEAST, outputs)
    return nn.Sequential(
        nn.Conv2d(inputs, within, 1, bias=False),
        nn.BatchNorm2d(within),
        nn.ReLU(),
        nn.Conv2d(within, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
