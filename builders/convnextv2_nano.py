"""ConvNeXt V2 nano at 19, 34 and 54 % of its macs, and factored by lockd.

The former are taught by itself and the tiny size in turn (HKD), the latter by itself.

    accelerate launch -m builders convnextv2_nano --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 34 to 64 each, 249 in all, estimated, as none was run: its macs at 10 TMACs a second, assumed of one
A100 80 GB in bf16 on networks with some depthwise convolutions, lockd's ten epochs of pairs among them. What comes
out binds its users as the base does: cc-by-nc-4.0.

Should reach the top-1 that the sources report, on ImageNet's validation images:

    convnextv2_nano_pruned_19          75.31 %
    convnextv2_nano_pruned_34          79.22 %
    convnextv2_nano_pruned_54          81.55 %
    convnextv2_nano_lockd_nt005        82.09 %
    convnextv2_nano_lockd_nt010        81.60 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the five models."""
    return family.build(family.entries("convnextv2_nano"), run)
