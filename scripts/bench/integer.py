"""Speed of integer models beside floats and onnxruntime's own 8 bits, in turns; sizes, what making one costs.

scripts/bench/run integer [--quick] [--rounds 15] [--batch 1 16] [--images 32] [MODEL ...]

MODEL is the folder of a repository, whose weights are real, or one of NETWORKS, whose weights are random; `MODEL/half`
is the same, pruned to half of its macs. Calibration images are noise for all. `ours` is given bytes, as its file takes
them, the others normalised floats.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from integer_accuracy import onnxruntimes_own
from torch import Tensor, nn

import zoo
from zoo.catalog.entry import Base
from zoo.hub.repository import WEIGHTS
from zoo.measurement.latency import turns
from zoo.measurement.macs import input_size
from zoo.onnx.backend import accelerated
from zoo.onnx.export import onnx_program
from zoo.onnx.runtime import session
from zoo.structure.graph.certificate import certificate

NETWORKS = {
    "resnet18": Base("timm/resnet18", {"zero_init_last": False}),
    "mobilenetv2_100": Base("timm/mobilenetv2_100"),
    "digits_cnn": Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [24, 40, 56, 64], "num_classes": 10}),
}
DEFAULT = ("resnet18", "mobilenetv2_100", "resnet18/half", "mobilenetv2_100/half")
WAYS = ("eager", "compiled", "ORT fp32", "ORT int8", "ours")


def network(name: str) -> nn.Module:
    """A model by its name, pruned where that ends in /half."""
    whole = name.removesuffix("/half")
    model = zoo.load(whole) if Path(whole).is_dir() else zoo.create(NETWORKS[whole])
    return model if name == whole else zoo.compress(model, budget=0.5, data=noise(32, input_size(model)))


def noise(images: int, size: tuple[int, int, int]) -> list[Tensor]:
    """Batches of 8 images."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, *size, generator=generator) for _ in range(max(1, images // 8))]


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds that a call takes, and what it gives."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def cost(model: nn.Module, whole: nn.Module) -> str:
    """Sizes of both files, and the certificate's part of loading."""
    with tempfile.TemporaryDirectory() as place:
        folders = [zoo.save(each, Path(place) / str(i), name=f"net{i}") for i, each in enumerate((model, whole))]
        sizes = [(folder / WEIGHTS).stat().st_size for folder in folders]
        loading = min(seconds(lambda: zoo.load(folders[1]))[0] for _ in range(3))
        loaded = zoo.load(folders[1])
        certifying = min(seconds(lambda: certificate(loaded))[0] for _ in range(3))
    share = sizes[1] / sizes[0]
    return (
        f"file {sizes[1] / 1e6:.2f} MB, {share:.3f} of the floats'; loaded in {loading:.2f} CPU s, of which the "
        f"certificate {certifying / loading:.1%}"
    )


def calls(model: nn.Module, whole: nn.Module, own: Callable[[Tensor], Tensor], images: Tensor) -> list[Any]:
    """What is timed, in the order of WAYS."""
    threads = torch.get_num_threads()
    floats = session(onnx_program(model, images[:1].repeat(2, 1, 1, 1)).SerializeToString(), "floats", threads)
    compiled, ours, pixels = torch.compile(model), accelerated(whole), whole.get_submodule("pixels").pixels(images)
    array = images.numpy()

    def torchs(run: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.inference_mode():
                run(images)

        return call

    runs = [lambda: floats(None, {"images": array}), lambda: own(images), lambda: ours(pixels)]
    return [torchs(model), torchs(compiled), *runs]


def main() -> None:
    """Print a row for each model and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--images", type=int, default=32, help="to calibrate with")
    parser.add_argument("--quick", action="store_true", help="one small model, one round")
    asked = parser.parse_args()
    if asked.quick:
        asked.names, asked.rounds, asked.batch, asked.images = ["digits_cnn"], 1, [1], 8
    print(f"milliseconds, median of {asked.rounds} interleaved rounds, {torch.get_num_threads()} threads")
    print(f"{'':24}{'batch':>6}" + "".join(f"{way:>10}" for way in WAYS) + f"{'of fp32':>10}{'of int8':>10}")
    for name in asked.names or DEFAULT:
        model = network(name)
        batches = noise(asked.images, input_size(model))
        spent, whole = seconds(lambda: zoo.compress(model, data=batches, method="integer"))  # noqa: B023
        own = onnxruntimes_own(model, batches)
        for batch in asked.batch:
            images = torch.cat([*batches, *batches, *batches])[:batch]
            timed = calls(model, whole, own, images)
            middle = [statistics.median(times) for times in turns(timed, asked.rounds)]
            ratios = f"{middle[2] / middle[4]:9.2f}x{middle[3] / middle[4]:9.2f}x"
            print(f"{name[-23:]:24}{batch:6}" + "".join(f"{each:10.2f}" for each in middle) + ratios, flush=True)
        print(f"{'':24}{cost(model, whole)}; quantized by {asked.images} images in {spent:.1f} CPU s", flush=True)


if __name__ == "__main__":
    main()
