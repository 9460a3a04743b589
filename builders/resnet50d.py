"""ResNet-50-D at 25, 37 and 56 % of its macs, and factored by lockd, taught by itself.

    accelerate launch -m builders resnet50d --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 13 to 31 each, 83 in all, estimated, as none was run: its macs at 30 TMACs a second, assumed of one
A100 80 GB in bf16 on dense convolutions, lockd's ten epochs of pairs among them.

Should reach the top-1 that the sources report, on ImageNet's validation images:

    resnet50d_pruned_25                77.21 %
    resnet50d_pruned_37                78.51 %
    resnet50d_pruned_56                79.75 %
    resnet50d_lockd_nt005              78.24 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the four models."""
    return family.build(family.entries("resnet50d"), run)
