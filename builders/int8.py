"""The image classifiers that MRT quantized, in integers of 8 bits: one script for all of its families.

    python -m builders int8 --data /path/to/imagenet

Cost: no GPU hours, as nothing is trained: weights and steps are chosen by a few images, in minutes each. Without names
it makes those whose dense weights timm or torchvision publish; of the others' networks `python -m builders int8 NAME`
says where your weights go.

Should reach the dense model's top-1 less half a point; MRT's own lose up to eight. None was made of ImageNet here.
"""

from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run
from zoo import catalog
from zoo.catalog.entry import Entry


def build(run: Run) -> Iterator[Path]:
    """Build what was named, or whatever has weights."""
    every = map(catalog.info, catalog.names(all=True, project="mrt", task="image-classification"))
    return family.build([entry for entry in every if run.models or _has_weights(entry)], run)


def _has_weights(entry: Entry) -> bool:
    return entry.license is not None  # which is of the weights
