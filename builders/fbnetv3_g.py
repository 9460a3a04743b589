"""FBNetV3-G at 37, 52, 65 and 75 % of its macs, taught by FBNetV3-B, -D and -G in turn (HKD).

    accelerate launch -m builders fbnetv3_g --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 34 to 55 each, 179 in all, estimated, as none was run: its macs at 4 TMACs a second, assumed of one
A100 80 GB in bf16 on networks of depthwise convolutions.

Should reach the top-1 that the source reports, on ImageNet's validation images:

    fbnetv3_g_pruned_37                77.42 %
    fbnetv3_g_pruned_52                79.20 %
    fbnetv3_g_pruned_65                79.69 %
    fbnetv3_g_pruned_75                80.30 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the four models."""
    return family.build(family.entries("fbnetv3_g"), run)
