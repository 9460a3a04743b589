"""ONNX files of models: does onnxruntime compute them, at batches 1 and 7, as torch does; their size and CPU seconds.

scripts/bench/run exports [--quick] [NAME ...]

Names are those of the catalog, of which published ones get random weights here, and folders of repositories.
"""

import argparse
import time
from pathlib import Path

import torch

import zoo
from zoo import catalog
from zoo.errors import StructureError
from zoo.measurement.macs import input_size
from zoo.onnx.export import OPSET, onnx_program
from zoo.onnx.runtime import BATCHES, compared

PUBLISHED = (
    "resnet50d_pruned_56",
    "deit3_small_patch16_224_pruned_47",
    "swinv2_cr_tiny_ns_224_pruned_59",
    "convnextv2_nano_pruned_34",
    "mobilevitv2_200_pruned_60",
    "efficientnetv2_b0_pruned_54",
    "fbnetv3_g_pruned_52",
    "beit_base_patch16_224_pruned_65",
)


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: all that are embedded, and eight published ones")
    parser.add_argument("--quick", action="store_true", help="one model")
    asked = parser.parse_args()
    embedded = catalog.names(status="embedded")
    names = asked.names or (embedded[:1] if asked.quick else [*embedded, *PUBLISHED])
    print(f"opset {OPSET}, largest difference as a share of the largest output, at batches {BATCHES}")
    print(f"{'':38}{'structure':>10}{'nodes':>7}{'MB':>7}{'CPU s':>7}  difference")
    failed = 0
    for name in names:
        loads = Path(name).is_dir() or name in embedded
        model = zoo.load(name) if loads else zoo.create(name)
        size, started = input_size(model), time.process_time()
        graph = "graph" if model.zoo_entry.graph is not None else "plan"
        try:
            program = onnx_program(model, torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
            data = program.SerializeToString()
            spent = time.process_time() - started
            row = f"{len(program.graph.node):7}{len(data) / 1e6:7.1f}{spent:7.1f}  {compared(data, model, size):.1e}"
        except StructureError as error:
            failed, row = failed + 1, f"  {error}"
        print(f"{Path(name).name:38}{graph:>10}{row}", flush=True)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
