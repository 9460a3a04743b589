"""Which of MRT's models become integers here, and whether all that computes them gives the same bytes.

scripts/bench/run integer_rows [--quick] [--side 64] [--images 8] [NAME ...]

Each row of the catalog's project mrt is built with random weights, sees images of noise, 64 pixels wide where it takes
any size, and is quantized. Compared are torch's reference, the same with every layer in double precision,
with two threads, image by image, and onnxruntime: of detectors the raw heads, which are decoded in floats, outside.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import zoo
from zoo import catalog
from zoo.errors import ZooError, first_line
from zoo.files import write_json
from zoo.measurement.divergence import leaves
from zoo.measurement.macs import noise
from zoo.onnx.backend import accelerated
from zoo.structure.base import initialised
from zoo.structure.description import Description, attach_, config_of, configure_
from zoo.structure.graph import integer
from zoo.structure.graph.certificate import certificate
from zoo.structure.tensors import tensors_of

CACHE = Path("build/integer_rows")
STORED = (".weight", ".bias")  # what MRT's "Params Size" counts too


def measured(name: str, side: int, count: int) -> dict[str, Any]:
    """One row, from random weights to bytes."""
    entry = catalog.info(name)
    if entry.base is None:
        return {"error": "has no base here yet"}
    torch.manual_seed(0)
    model = initialised(entry.base, 0)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    channels, height, width = config_of(model)["input_size"]
    size = height if height < 64 or "inception" in name or "vgg" in name or "alexnet" in name else side
    configure_(model, {**config_of(model), "input_size": (channels, size, size if height == width else width)})
    attach_(model, Description(entry.architecture, entry.base, task=entry.task))
    images = noise(model, count)
    started = time.process_time()
    made = zoo.compress(model, data=images, method="integer", rounding="nearest")
    seconds = time.process_time() - started
    held = certificate(made)
    with torch.no_grad():
        expected = leaves(made(images))
        fast = leaves(accelerated(made)(images))
        kept, integer._keeps_single = integer._keeps_single, lambda x: False
        double = leaves(made(images))
        integer._keeps_single = kept
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        singly = [torch.cat(each) for each in zip(*(leaves(made(each)) for each in images.split(1)), strict=True)]
        torch.set_num_threads(threads)
    return {
        "layers": len(held),
        "double": sum(not each.single for each in held.values()),
        "bound": max(each.bound for each in held.values()),
        "equal": all(map(torch.equal, expected * 2, double + singly)),
        "onnxruntime": all(map(torch.equal, expected, fast)),
        "mib": sum(tensor.nbytes for path, tensor in tensors_of(made).items() if path.endswith(STORED)) / 2**20,
        "seconds": seconds,
    }


def row(name: str, side: int, count: int) -> dict[str, Any]:
    """One row, made once."""
    path = CACHE / f"{name}.json"
    if not path.exists():
        try:
            found = measured(name, side, count)
        except ZooError as error:
            found = {"error": first_line(error)[:200]}
        except Exception as error:  # of the network's own
            found = {"error": f"{type(error).__name__}: {first_line(error)}"[:200]}
        write_json(path, found)
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def main() -> None:
    """Print a row for each model, then how many are the same everywhere."""
    global CACHE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the catalog's models")
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--images", type=int, default=8, help="of noise; 2 make do for the large networks")
    parser.add_argument("--quick", action="store_true", help="one row")
    arguments = parser.parse_args()
    names = arguments.names or [name for name in catalog.names(all=True, project="mrt")]
    if arguments.quick:
        CACHE, names = Path("build/quick/integer_rows"), ["cifar_resnet20_v1_int8"]
    found = {name: row(name, arguments.side, arguments.images) for name in tqdm(names)}
    print(f"{'model':32}{'layers':>7}{'double':>7}{'bound':>14}{'equal':>7}{'ort':>6}{'MiB':>7}{'CPU s':>7}  why not")
    for name, each in found.items():
        if "error" in each:
            print(f"{name:32}{'':>55}  {each['error'][:110]}")
        else:
            same = "yes" if each["equal"] else "NO", "yes" if each["onnxruntime"] else "NO"
            told = f"{each['layers']:>7}{each['double']:>7}{each['bound']:>14,}{same[0]:>7}{same[1]:>6}"
            print(f"{name:32}{told}{each['mib']:>7.2f}{each['seconds']:>7.1f}")
    whole = sum(bool(each.get("equal") and each.get("onnxruntime")) for each in found.values())
    print(f"{whole} of {len(found)} become integers and give the same bytes in torch, in double and in onnxruntime")


if __name__ == "__main__":
    main()
