"""EfficientFormer V2 S2 at 72 % of its macs, and factored by lockd, taught by itself.

    accelerate launch -m builders efficientformerv2_s2 --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 70 to 85 each, 230 in all, estimated, as none was run: its macs at 4 TMACs a second, assumed of one
A100 80 GB in bf16 on networks of depthwise convolutions, lockd's ten epochs of pairs among them.

Should reach the top-1 that the sources report, on ImageNet's validation images:

    efficientformerv2_s2_pruned_72     81.58 %
    efficientformerv2_s2_lockd_nt010   80.54 %
    efficientformerv2_s2_lockd_nt015   75.37 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the three models."""
    return family.build(family.entries("efficientformerv2_s2"), run)
