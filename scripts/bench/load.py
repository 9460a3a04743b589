"""Loading beside timm's own: CPU time of both in one run, interleaved, warm; outputs compared bit for bit.

scripts/bench/run load [--quick] [--rounds 15]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

import zoo
from zoo.hub import weights
from zoo.measurement.latency import turns

MODELS = ("resnet50d", "beit_base_patch16_224")


def medians(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Median CPU milliseconds of each call, taking turns."""
    return [statistics.median(times) for times in turns(calls, rounds, time.process_time)]


def bit_equal(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether outputs are the same bytes at 1, 2 and 4 threads and batch 1, 2 and 8."""
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            for batch in (1, 2, 8):
                images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(batch))
                with torch.no_grad():
                    if not torch.equal(ours(images), theirs(images)):
                        return False
    finally:
        torch.set_num_threads(threads)
    return True


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one model, one round")
    asked = parser.parse_args()
    rounds, models = (1, MODELS[:1]) if asked.quick else (asked.rounds, MODELS)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    print(f"CPU ms, median of {rounds} interleaved rounds, {torch.get_num_threads()} threads")
    print(
        f"{'':24}{'timm':>9}{'zoo':>9}{'ratio':>8}   {'timm+1':>9}{'zoo+1':>9}{'ratio':>8}   {'map file':>8}  outputs"
    )
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            dense = timm.create_model(name).eval()
            repository = zoo.save(dense, Path(folder) / name)
            file = Path(folder) / "plain.safetensors"
            save_file({key: value.contiguous() for key, value in dense.state_dict().items()}, file)

            def theirs(name: str = name, file: Path = file) -> nn.Module:
                return timm.create_model(name, checkpoint_path=str(file)).eval()

            def ours(repository: Path = repository) -> nn.Module:
                return zoo.load(repository)

            def first(load: Callable[[], nn.Module]) -> Callable[[], object]:
                return torch.no_grad()(lambda: load()(image))

            def floor(file: Path = repository / "model.safetensors") -> object:
                return weights.load_weights(file)

            t, z, floor_ms = medians(rounds, theirs, ours, floor)
            t1, z1 = medians(rounds, first(theirs), first(ours))
            same = "bit-equal" if bit_equal(ours(), theirs()) else "DIFFERENT"
            print(
                f"{name:24}{t:9.1f}{z:9.1f}{t / z:7.1f}x   {t1:9.1f}{z1:9.1f}{t1 / z1:7.1f}x   {floor_ms:8.1f}  {same}"
            )


if __name__ == "__main__":
    main()
