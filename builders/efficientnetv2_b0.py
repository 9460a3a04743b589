"""EfficientNetV2-B0 at 35 to 76 % of its macs, taught by B0, B1 and B2 in turn (HKD).

    accelerate launch -m builders efficientnetv2_b0 --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 29 to 55 each, 332 in all, estimated, as none was run: its macs at 4 TMACs a second, assumed of one
A100 80 GB in bf16 on networks of depthwise convolutions. Those at 35, 53 and 60 % train for half as many epochs
again.

Should reach the top-1 that the source reports, on ImageNet's validation images:

    efficientnetv2_b0_pruned_35        76.12 %
    efficientnetv2_b0_pruned_40        76.70 %
    efficientnetv2_b0_pruned_53        77.69 %
    efficientnetv2_b0_pruned_54        77.62 %
    efficientnetv2_b0_pruned_60        78.64 %
    efficientnetv2_b0_pruned_61        78.14 %
    efficientnetv2_b0_pruned_69        78.62 %
    efficientnetv2_b0_pruned_76        78.82 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the eight models."""
    return family.build(family.entries("efficientnetv2_b0"), run)
