"""ReXNet-R 2.0 at 38 and 51 % of its macs, and factored by lockd, taught by itself.

    accelerate launch -m builders rexnetr_200 --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 59 to 95 each, 225 in all, estimated, as none was run: its macs at 4 TMACs a second, assumed of one
A100 80 GB in bf16 on networks of depthwise convolutions, lockd's ten epochs of pairs among them.

Should reach the top-1 that the sources report, on ImageNet's validation images:

    rexnetr_200_pruned_38              79.10 %
    rexnetr_200_pruned_51              80.80 %
    rexnetr_200_lockd_nt010            81.78 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the three models."""
    return family.build(family.entries("rexnetr_200"), run)
