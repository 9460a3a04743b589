"""Which networks become graphs: timm's (one per module), torchvision's, transformers', and some of a user's own.

scripts/bench/run graphs [--quick] [--seconds 300] [--images 5] [NAME ...]

Each is built with random weights, written as a graph, loaded in a process that has neither timm, torchvision nor
transformers, and must give there what it gave here for two images (1e-6 of the largest output); then half of its macs
are cut from the graph, every group alike, and the cut compared with the masked dense graph (1e-6, double precision).
Convolutional networks see small images. Rows are kept in build/graphs and made once; transformers' need that package.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from coverage import CACHE as ARCHITECTURES
from coverage import architectures, reached
from own_nets import OWN
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from zoo.errors import ZooError, first_line
from zoo.files import write_json
from zoo.hub import repository
from zoo.measurement.divergence import leaves
from zoo.structure.description import Description, attach_, configure_
from zoo.structure.graph.capture import capture
from zoo.verbs.coverage import coverage

CACHE = Path("build/graphs")
CLOSE = 1e-6
SMALL = 96  # pixels, of what takes any size
BACKBONES = {
    "resnet50_fpn": lambda: torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None
    ),
    "mobilenet_v3_large_fpn": lambda: torchvision.models.detection.backbone_utils.mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True
    ),
    "ssd300_vgg16": lambda: torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None).backbone,
    "ssdlite320_mobilenet_v3_large": lambda: (
        torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).backbone
    ),
    "retinanet_resnet50_fpn": lambda: (
        torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).backbone
    ),
}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 64, 128]}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViT": TINY,
    "DeiT": TINY,
    "BEiT": TINY,
    "Dinov2": {**TINY, "image_size": 224},
    "ConvNext": STAGES,
    "ConvNextV2": STAGES,
    "ResNet": {**STAGES, "embedding_size": 32},
    "RegNet": {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 64, 128], "embedding_size": 32, "groups_width": 16},
    "Swin": {"embed_dim": 24, "depths": [1, 2], "num_heads": [2, 4], "image_size": 224},
    "Segformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 64]},
    "MobileNetV2": {},
    "PoolFormer": {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 64, 128]},
}


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]]:
    """Name → what builds it, and channels, height, width of its images."""
    found: dict[str, Any] = {f"own/{name}": each for name, each in OWN.items()}
    for name in torchvision.models.list_models(torchvision.models):
        sized = name.startswith(("vit", "maxvit")) and 224
        size = 299 if name == "inception_v3" else sized or SMALL
        found[f"torchvision/{name}"] = (lambda n=name: _of_torchvision(n), (3, size, size))
    for name in torchvision.models.list_models(torchvision.models.segmentation):
        found[f"torchvision/{name}"] = (lambda n=name: _of_torchvision(n, weights_backbone=None), (3, SMALL, SMALL))
    found |= {f"torchvision/backbone of {name}": (make, (3, 320, 320)) for name, make in BACKBONES.items()}
    found |= {
        f"transformers/{name}": (lambda n=name, o=options: _of_transformers(n, o), (3, 224, 224))
        for name, options in TRANSFORMERS.items()
    }
    for name in architectures().values():
        config = timm.get_pretrained_cfg(name)
        channels, *sides = config.input_size
        fixed = config.fixed_input_size or config.min_input_size or "former" in name or max(sides) < 128
        size = (channels, *(sides if fixed else (128, 128)))
        found[f"timm/{name}"] = (lambda n=name: timm.create_model(n), size)
    return found


def _of_torchvision(name: str, **options: Any) -> nn.Module:
    once = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # it takes minutes
    return torchvision.models.get_model(name, weights=None, **options, **once)


def _of_transformers(name: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config".replace("BEiT", "Beit"))(**options)
    return getattr(transformers, f"{name}ForImageClassification".replace("BEiT", "Beit"))(config)


def measured(name: str, reloader: "Reloader") -> dict[str, Any]:
    """One network, from its module to the cut of its graph."""
    torch.manual_seed(0)
    make, size = networks()[name]
    model = make().eval()
    for parameter in model.parameters():
        if not parameter.any():  # as the heads of some, whose outputs would tell nothing
            nn.init.normal_(parameter, std=0.02)
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as place:
        folder, stored = Path(place) / "model", Path(place) / "expected.safetensors"
        made, graph = capture(model, images[:1])
        configure_(made, {"input_size": size})
        attach_(made, Description("network", None, graph=graph))
        repository.write_repository(folder, made, made.zoo_entry, {})
        with torch.no_grad():
            expected = {str(i): each.contiguous() for i, each in enumerate(leaves(model(images)))}
        save_file({"images": images, **expected}, stored)
        off = reloader(folder, stored)
        del model, made
        return {"nodes": len(graph.nodes), "reloaded": off, **asdict(coverage(str(folder)))}


class Reloader:
    """A process without any library of networks, which loads what it is told."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, Path(__file__).with_name("reloaded.py")], **pipes)

    def __call__(self, folder: Path, stored: Path) -> float:
        """How far what it gives is from what is stored; infinite where it can't be loaded."""
        print(folder, stored, sep="\t", file=self.process.stdin, flush=True)
        for line in self.process.stdout:  # of which the first may be for a row whose time was up
            if line.startswith(f"{folder}\t"):
                return float(line.rpartition("\t")[2])
        raise ZooError("the process that loads again has ended")


def row(name: str, seconds: float, reloader: "Reloader | None" = None) -> dict[str, Any]:
    """One row, measured in a process of its own, forked from this one, which has imported everything."""
    path = CACHE / f"{name.replace('/', '-').replace(' ', '_')}.json"
    if not path.exists():
        started = time.monotonic()
        process = get_context("fork").Process(target=_write, args=(name, path, reloader))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
        error = f"no answer in {seconds:.0f} s" if process.exitcode == -9 else f"exit {process.exitcode}"
        found = json.loads(path.read_text()) if path.exists() else {"error": error}
        write_json(path, {**found, "wall": time.monotonic() - started})
    return json.loads(path.read_text())


def _write(name: str, path: Path, reloader: Reloader) -> None:
    try:
        found = measured(name, reloader)
    except Exception as error:  # of ours or of the network's own
        kind = "" if isinstance(error, ZooError) else f"{type(error).__name__}: "
        found = {"error": f"{kind}{first_line(error)}"[:200]}
    write_json(path, found)


def lines(names: list[str]) -> Iterator[str]:
    """A line for each network, then what those of a library come to."""
    found_of = {name: row(name, 0) for name in names}
    yield f"{'network':48}{'nodes':>6}{'reloaded':>10}{'macs left':>11}{'off':>8}{'seconds':>9}  why not"
    for name, each in found_of.items():
        why = each.get("error") or ("" if reached(each) else "; ".join(sorted(set(each["frozen"].values()))))
        off = f"{each['reloaded']:.0e}" if "reloaded" in each else "-"
        cut = f"{each.get('kept', 1.0):>11.1%}{each.get('off', float('inf')):>8.0e}"
        yield f"{name:48}{each.get('nodes', '-'):>6}{off:>10}{cut}{each['wall']:>9.1f}  {why[:120]}"
    for library in dict.fromkeys(name.partition("/")[0] for name in names):
        rows = [each for name, each in found_of.items() if name.startswith(f"{library}/")]
        equal = [each for each in rows if each.get("reloaded", 1.0) <= CLOSE]
        half = sum(map(reached, equal))
        yield f"{library}: {len(equal)} of {len(rows)} reloaded and equal, {half} of these cut to half of the macs"


def main() -> None:
    """Print a row for each network, then what they come to."""
    global CACHE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of networks, or how they begin")
    parser.add_argument("--seconds", type=float, default=300, help="that a row may take")
    parser.add_argument("--quick", action="store_true", help="the user's own networks")
    arguments = parser.parse_args()
    if arguments.quick:
        CACHE, arguments.names = Path("build/quick/graphs"), ["own/"]
        shutil.rmtree(CACHE, ignore_errors=True)
        write_json(ARCHITECTURES / "architectures.json", {}) if not ARCHITECTURES.exists() else None
    wanted = tuple(arguments.names) or ("",)
    names = [name for name in networks() if name.startswith(wanted)]
    torch.set_num_threads(1)  # threads wouldn't outlive a fork
    reloader = Reloader()
    for name in tqdm(names):
        row(name, arguments.seconds, reloader)
    for line in lines(names):
        print(line)


if __name__ == "__main__":
    main()
