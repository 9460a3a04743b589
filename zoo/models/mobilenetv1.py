"""MobileNetV1 at widths that timm lacks: its own network, with every width multiplied.

    3x3 convolution of 32, stride 2 · 13 depthwise separable blocks, to 1024 channels · mean · linear

Source: Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, table 1 and
        section 3.3, https://arxiv.org/abs/1704.04861
"""

from typing import Any

from timm.models import EfficientNet
from torch import nn

from zoo.models.classifier import config

STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # channels, blocks, stride of the first


def mobilenetv1(percent: int, /, num_classes: int = 1000, in_chans: int = 3) -> EfficientNet:
    """MobileNetV1, narrower.

    Args:
        percent: of the widths.
        num_classes: of the classifier; 0 leaves it out.
        in_chans: channels of the images.
    """
    block: dict[str, Any] = {"block_type": "dsa", "dw_kernel_size": 3, "pw_kernel_size": 1, "pw_act": True}
    block |= {"act_layer": None, "noskip": True, "s2d": False, "se_ratio": 0.0}
    model: Any = EfficientNet(
        [
            [{**block, "out_chs": width, "stride": 1 if i else stride} for i in range(blocks)]
            for width, blocks, stride in STAGES
        ],
        num_classes,
        num_features=0,
        in_chans=in_chans,
        act_layer=nn.ReLU,
        round_chs_fn=lambda width: width * percent // 100,
    )
    architecture, size = f"mobilenetv1_{percent:03}", (in_chans, 224, 224)
    model.pretrained_cfg = model.default_cfg = config(architecture, num_classes, size, "conv_stem", "classifier")
    return model  # type: ignore[no-any-return]
