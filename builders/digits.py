"""The digits family, which lies in the wheel so that everything runs with no network.

    python -m builders digits

Costs about five minutes on two cores. Should reach, on the 450 held-out digits: the dense CNN 98.5 % top-1, the dense
ViT 97 %, and pruned to half and to a quarter of the macs no less than a point below. The numbers of the recipes stand
in `zoo/catalog/digits_*.toml`. Dense networks come before what is made of them.
"""

import shutil
from pathlib import Path

from zoo import building, catalog
from zoo.building import Say
from zoo.hub import repository

CARDS = Path(__file__).parents[1] / "model_cards"


def build(say: Say) -> None:
    """Build the six models into the package, and their cards and results into `model_cards`."""
    names = sorted(catalog.names("digits_*"), key=lambda name: (catalog.info(name).recipe.method is not None, name))
    for name in names:
        folder = building.build(name, catalog.EMBEDDED / name, say=say)
        (CARDS / "results").mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / repository.CARD, CARDS / f"{name}.md")
        shutil.copy(folder / repository.RESULTS, CARDS / "results" / f"{name}.json")
