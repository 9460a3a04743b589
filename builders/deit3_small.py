"""DeiT III small at 32, 47 and 66 % of its macs, and factored by lockd and falor.

The former are taught by itself and the base size in turn (HKD), the latter by itself.

    accelerate launch -m builders deit3_small --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 30 to 48 each, 189 in all, estimated, as none was run: its macs at 30 TMACs a second, assumed of one
A100 80 GB in bf16 on plain attention, lockd's ten epochs of pairs among them.

Should reach the top-1 that the sources report, on ImageNet's validation images:

    deit3_small_patch16_224_pruned_32     77.88 %
    deit3_small_patch16_224_pruned_47     80.87 %
    deit3_small_patch16_224_pruned_66     81.85 %
    deit3_small_patch16_224_falor_nft005  81.31 %
    deit3_small_patch16_224_lockd_nt010   81.30 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the five models."""
    return family.build(family.entries("deit3_small_patch16_224"), run)
