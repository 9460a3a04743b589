"""MobileViT V2 2.0 at 60 % of its macs, and factored by lockd, taught by itself, at 256 pixels.

    accelerate launch -m builders mobilevitv2_200 --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 135 to 143 each, 278 in all, estimated, as none was run: its macs at 10 TMACs a second, assumed of
one A100 80 GB in bf16 on networks with some depthwise convolutions, lockd's ten epochs of pairs among them.

Should reach the top-1 that the sources report, on ImageNet's validation images:

    mobilevitv2_200_pruned_60          82.53 %
    mobilevitv2_200_lockd_nt010        81.71 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the two models."""
    return family.build(family.entries("mobilevitv2_200"), run)
