"""PoolFormer V2 S24 at 52 % of its macs, taught by itself.

    accelerate launch -m builders poolformerv2_s24 --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 62, estimated, as none was run: its macs at 10 TMACs a second, assumed of one A100 80 GB in bf16 on
networks that pool and normalise much.

Should reach the top-1 that the source reports, on ImageNet's validation images:

    poolformerv2_s24_pruned_52         80.40 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the model."""
    return family.build(family.entries("poolformerv2_s24"), run)
