"""The residual network of 20 layers for CIFAR-10, trained from scratch.

    python -m builders cifar_resnet20 --data /path/to/cifar10

Cost: an hour or two of one GPU, estimated: 78,200 steps of 128 small images. What MRT quantized of it, `zoo compress
build/cifar_resnet20_v1 --method integer` makes of this one.

Should reach what GluonCV's own does, 92.88 % top-1, less a point or so for another recipe: it wasn't trained here.
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run


def build(run: Run) -> Iterator[Path]:
    """Build the one model."""
    return family.build(family.entries("cifar_resnet20"), run)
