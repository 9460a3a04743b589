"""BEiT base at 65 % of its macs, taught by itself.

    accelerate launch -m builders beit_base --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 123, estimated, as none was run: its macs at 30 TMACs a second, assumed of one A100 80 GB in bf16 on
plain attention.

Should reach the top-1 that the source reports, on ImageNet's validation images:

    beit_base_patch16_224_pruned_65    84.53 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the model."""
    return family.build(family.entries("beit_base_patch16_224"), run)
