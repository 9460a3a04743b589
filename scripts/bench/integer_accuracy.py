"""What integers cost in accuracy: ours beside other ways, on the same calibration and test images.

scripts/bench/run integer_accuracy [--quick] [--images 512] [--seeds 3] MODEL DATA

MODEL and DATA are what `zoo verify` takes. Each way quantizes the same network by the same images of the train split,
once for each seed of their draw, and runs on the whole test split: top-1 less that of the floats, with the half-width
of its 95 % interval over pairs of answers; agreement with the floats; signal to noise of the logits. onnxruntime's own
static quantization (per channel) and torchao's PT2E run where these are installed.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import zoo
from zoo.structure.description import config_of
from zoo.tasks import task_of
from zoo.tasks.datasets import dataset
from zoo.verbs.compressing import calibration

OURS: dict[str, dict[str, Any]] = {
    "exact, 8 bits": {},
    "exact, 8 bits, nearest": {"rounding": "nearest"},
    "exact, 6 bits": {"weight_bits": 6},
    "exact, 4 bits": {"weight_bits": 4},
    "exact, 4 bits, nearest": {"weight_bits": 4, "rounding": "nearest"},
    "mrt, 8 bits": {"scheme": "mrt"},
    "mrt, 4 bits": {"scheme": "mrt", "weight_bits": 4},
}
Runs = Callable[[Tensor], Tensor]


def ways(model: nn.Module, batches: list[Tensor], seed: int) -> Iterator[tuple[str, Callable[[], Runs]]]:
    """Name of each way → what quantizes the model by it."""
    for name, options in OURS.items():
        yield name, lambda options=options: zoo.compress(model, data=batches, method="integer", seed=seed, **options)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        yield "onnxruntime's own", lambda: onnxruntimes_own(model, batches)
    if importlib.util.find_spec("torchao"):
        yield "torchao PT2E", lambda: _torchaos(model, batches)


def onnxruntimes_own(model: nn.Module, batches: list[Tensor]) -> Runs:
    """What onnxruntime's static quantization makes of a model, per channel."""
    from onnxruntime import InferenceSession, SessionOptions, quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"images": batch.contiguous().numpy()}

    with tempfile.TemporaryDirectory() as place:
        path, prepared, whole = (Path(place) / name for name in ("float.onnx", "prepared.onnx", "int8.onnx"))
        zoo.export(model, onnx=path)
        quantization.shape_inference.quant_pre_process(str(path), str(prepared))
        quantization.quantize_static(str(prepared), str(whole), Reader(), per_channel=True)
        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = InferenceSession(whole.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


def _torchaos(model: nn.Module, batches: list[Tensor]) -> Runs:
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = torch.export.Dim.AUTO
    exported = torch.export.export(model, (batches[0],), dynamic_shapes=({0: batch},)).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for images in batches:
        prepared(images)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return converted  # type: ignore[no-any-return]


def logits(run: Runs, images: list[Tensor]) -> Tensor:
    """What is given for all test images [N, classes]."""
    with torch.no_grad():
        return torch.cat([run(batch) for batch in tqdm(images, leave=False)])


def judged(found: Tensor, floats: Tensor, labels: Tensor) -> dict[str, float]:
    """How far a way is from the floats; accuracy and its interval in points."""
    right, was = ((each.argmax(1) == labels).double() for each in (found, floats))
    change = 100 * (right - was)
    return {
        "change": float(change.mean()),
        "half": 1.96 * float(change.std()) / math.sqrt(len(change)),
        "agreement": 100 * float((found.argmax(1) == floats.argmax(1)).double().mean()),
        "snr": float(10 * torch.log10(floats.square().sum() / (found - floats).square().sum())),
    }


def main() -> None:
    """Print a row for each way and seed, then the mean of each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="digits_cnn")
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--images", type=int, default=512, help="to calibrate by")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, few images")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    images, seeds = (64, 1) if arguments.quick else (arguments.images, arguments.seeds)
    model = zoo.load(arguments.model)
    task = task_of(model)
    pairs = [*task.loader(dataset(arguments.data, "test"), task.evaluation_transform(config_of(model)), 100)]
    test, labels = [batch for batch, _ in pairs], torch.cat([classes for _, classes in pairs])
    floats = logits(model, test)
    top1 = 100 * float((floats.argmax(1) == labels).double().mean())
    print(f"{arguments.model}: floats {top1:.2f} % of {len(labels)} images; calibrated by {images}, {seeds} seeds")
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        batches = calibration(model, arguments.data, images, seed)
        for name, quantize in ways(model, batches, seed):
            try:
                rows.setdefault(name, []).append(judged(logits(quantize(), test), floats, labels))
            except Exception as error:  # of another library, or of a scheme that isn't there
                rows.setdefault(name, [])
                print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
    if arguments.json:
        print(json.dumps(rows))
    print(f"{'':26}{'points':>9}{'± 95 %':>8}{'agreement':>11}{'SNR dB':>8}   points of each seed")
    for name, found in rows.items():
        with contextlib.suppress(IndexError, ValueError):
            means = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
            each = " ".join(f"{row['change']:+.2f}" for row in found)
            print(
                f"{name:26}{means['change']:>+9.2f}{means['half']:>8.2f}{means['agreement']:>10.2f}%{means['snr']:>8.1f}"
                f"   {each}"
            )


if __name__ == "__main__":
    main()
