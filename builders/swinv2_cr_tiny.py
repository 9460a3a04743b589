"""Swin V2 CR tiny at 59 % of its macs, and factored by lockd and falor, taught by itself.

    accelerate launch -m builders swinv2_cr_tiny --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 88 to 96 each, 276 in all, estimated, as none was run: its macs at 10 TMACs a second, assumed of one
A100 80 GB in bf16 on attention within windows, lockd's ten epochs of pairs among them.

Should reach the top-1 that the sources report, on ImageNet's validation images:

    swinv2_cr_tiny_ns_224_pruned_59     81.07 %
    swinv2_cr_tiny_ns_224_falor_nft005  80.99 %
    swinv2_cr_tiny_ns_224_lockd_nt010   81.26 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the three models."""
    return family.build(family.entries("swinv2_cr_tiny_ns_224"), run)
