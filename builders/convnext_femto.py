"""ConvNeXt femto, factored by lockd, taught by itself.

    accelerate launch -m builders convnext_femto --data /path/to/imagenet --precision bf16 --channels-last

Cost: GPU hours 19, estimated, as none was run: its macs at 10 TMACs a second, assumed of one A100 80 GB in bf16 on
networks with some depthwise convolutions, lockd's ten epochs of pairs among them.

Should reach the top-1 that the source reports, on ImageNet's validation images:

    convnext_femto_lockd_nt010         76.48 %
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the model."""
    return family.build(family.entries("convnext_femto"), run)
