"""ResNet-18, factored by lockd, taught by itself.

    accelerate launch -m builders resnet18 --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 11 to 15 each, 40 in all, estimated, as none was run: its macs at 30 TMACs a second, assumed of one
A100 80 GB in bf16 on dense convolutions, lockd's ten epochs of pairs among them.

Should reach the top-1 that the source reports, on ImageNet's validation images:

    resnet18_lockd_nt003               62.88 %
    resnet18_lockd_nt005               62.80 %
    resnet18_lockd_nt010               62.58 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the three models."""
    return family.build(family.entries("resnet18"), run)
