"""Images a second of an evaluation beside timm's own loop on the same files, and of several models in one pass.

scripts/bench/run verify [--quick] [--images 256] [--rounds 5] [--workers 0] [--together 4] [NAME ...]

Both read the same JPEGs, of 500 x 375 px, that are drawn here, by the same transform in batches of 32. timm's loop is
`create_dataset`, `create_loader` without a prefetcher, and a mean of right answers; ours also hashes all pixels. Rounds
take turns, and printed are medians. `decode` is a model that costs less than its images.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

import zoo
from zoo.tasks.classification import CLASSIFICATION
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import Seen, evaluate_together
from zoo.tasks.identity import Identified
from zoo.tasks.outputs import Computing

BATCH, CLASSES = 32, 4
LIGHT = "timm/test_resnet"  # at 96 px: a photograph costs four times as much to decode


def draw(folder: Path, images: int) -> Path:
    """Photographs of several classes, smooth with a little noise, 60 kB each."""
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        noisy = np.asarray(coarse, np.int16) + rng.normal(0, 6, (375, 500, 3)).astype(np.int16)
        place = folder / "validation" / f"class {number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"{number}.jpg", quality=90)
    (folder / "train").symlink_to("validation")
    return folder


def light() -> nn.Module:
    """A network that costs less than its images."""
    model = zoo.create(LIGHT)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 96, 96), "crop_pct": 0.875}
    return model


def by_timm(model: nn.Module, folder: Path, workers: int) -> float:
    """timm's own loop: the share of right answers."""
    config = timm.data.resolve_data_config(model=model)
    files = timm.data.create_dataset("", str(folder / "validation"))
    loader = timm.data.create_loader(
        files, batch_size=BATCH, use_prefetcher=False, num_workers=workers, pin_memory=False, **config
    )
    right = 0
    with torch.inference_mode():
        for images, labels in loader:
            right += int((model(images).argmax(1) == labels).sum())
    return right / len(files)


def by_zoo(models: list[nn.Module], folder: Path, workers: int) -> list[float]:
    """Ours: the same of each model."""
    rows = dataset(str(folder), "test")
    transform = Identified(CLASSIFICATION.evaluation_transform(models[0].pretrained_cfg))
    batches = CLASSIFICATION.loader(rows, transform, BATCH, workers=workers)
    found = evaluate_together([Seen(model) for model in models], batches, task=CLASSIFICATION, computing=Computing())
    return [each["top1"] for each in found]


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median of the ratios to the first way's seconds, and seconds of the first; rounds take turns."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for each in range(rounds + 1):
        for name, way in [*ways.items()][:: 1 if each % 2 else -1]:
            begun = time.perf_counter()
            way()
            spent[name].append(time.perf_counter() - begun)
    first, *_ = spent
    ratios = {
        name: [a / b for a, b in zip(spent[first][1:], all_of[1:], strict=True)] for name, all_of in spent.items()
    }
    return {"seconds": statistics.median(spent[first][1:])} | {
        key: statistics.median(all) for key, all in ratios.items()
    }


def main() -> None:
    """Print a row for each model, and one for several in one pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["timm/mobilenetv2_100"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--together", type=int, default=4, help="models in one pass")
    parser.add_argument("--quick", action="store_true", help="few images, one round")
    asked = parser.parse_args()
    images, rounds = (48, 1) if asked.quick else (asked.images, asked.rounds)
    with tempfile.TemporaryDirectory() as place:
        folder = draw(Path(place) / "photographs", images)
        for name in ("decode", *asked.names):
            model = light() if name == "decode" else zoo.create(name)
            ways = {"timm": lambda m=model: by_timm(m, folder, asked.workers)}
            ways["zoo"] = lambda m=model: by_zoo([m], folder, asked.workers)
            found = in_turns(ways, rounds)
            print(f"{name:24} timm {images / found['seconds']:6.1f} images/s, zoo {found['zoo']:.2f} x")
        models = [light() for _ in range(asked.together)]
        ways = {"alone": lambda: [by_zoo([each], folder, asked.workers) for each in models]}
        ways["together"] = lambda: by_zoo(models, folder, asked.workers)
        found = in_turns(ways, rounds)
        print(f"{len(models)} models in one pass  {found['together']:.2f} x as fast as one after the other")


if __name__ == "__main__":
    main()
