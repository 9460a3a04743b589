"""Loads what stdin names, a folder and a file of images and outputs, where no library of networks can be imported."""

import sys

sys.modules |= dict.fromkeys(("timm", "torchvision", "transformers"))

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from zoo.errors import ZooError  # noqa: E402
from zoo.measurement.divergence import leaves  # noqa: E402
from zoo.verbs.loading import load  # noqa: E402


def off(folder: str, stored: str) -> float:
    """How far a loaded model is from what is stored, as a share of the largest output."""
    values = load_file(stored)
    with torch.no_grad():
        found = leaves(load(folder)(values.pop("images")))
    largest = max(float(each.abs().max()) for each in values.values())
    return max(float((each - values[str(i)]).abs().max()) for i, each in enumerate(found)) / largest


for line in sys.stdin:
    folder, stored = line.rstrip("\n").split("\t")
    try:
        print(folder, off(folder, stored), sep="\t", flush=True)
    except (ZooError, RuntimeError, ZeroDivisionError) as error:
        print(error, file=sys.stderr)
        print(folder, "inf", sep="\t", flush=True)
