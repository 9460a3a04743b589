"""ConvFormer S18 at 43 % of its macs, taught by itself.

    accelerate launch -m builders convformer_s18 --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 65, estimated, as none was run: its macs at 10 TMACs a second, assumed of one A100 80 GB in bf16 on
networks with some depthwise convolutions.

Should reach the top-1 that the source reports, on ImageNet's validation images:

    convformer_s18_pruned_43           82.53 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the model."""
    return family.build(family.entries("convformer_s18"), run)
