"""The digits family, which lies in the wheel so that everything runs with no network.

    python -m builders digits

Cost: no GPU hours; about seven minutes on two cores, as measured. Dense networks come before what is made of them.
Without --out the models go into the package, and their results into `model_cards`; scripts/cards renders their cards.

Should reach, on the 450 held-out digits: the dense CNN 98.5 % top-1, the dense ViT 97 %, and pruned to half and to a
quarter of the macs, factored to half, or made of integers, no less than a point below.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from builders import family
from builders.family import Run
from zoo import catalog
from zoo.hub import repository
from zoo.verbs.beginning import processes

RESULTS = Path(__file__).parents[1] / "model_cards" / "results"


def build(run: Run) -> Iterator[Path]:
    """Build the eleven models."""
    entries = family.entries("digits_cnn", "digits_vit", "scenes_yolov8")
    entries.sort(key=lambda entry: (entry.recipe.method is not None, entry.name))
    for folder in family.build(entries, run, catalog.EMBEDDED):
        if folder.parent == catalog.EMBEDDED and processes().is_main_process:
            RESULTS.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / repository.RESULTS, RESULTS / f"{folder.name}.json")
        yield folder
