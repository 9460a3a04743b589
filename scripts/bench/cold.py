"""A fresh process up to a model's first output: built from its plan, and from the graph beside that.

scripts/bench/run cold [--quick] [--rounds 5] [NAME]

CPU seconds until the first output, of importing torch alone, and of the whole process with its end; modules imported;
memory in use then, and what of it is mapped from no file. The first process of each kind, which hashes the weights, is
left out.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import zoo
from zoo.verbs.viewing import add_graph

LIBRARIES = ("timm", "torchvision", "torch._dynamo")
CODE = """
import json, sys, time
import torch
torch_alone = time.process_time()
import zoo
model = zoo.load(sys.argv[1], structure=sys.argv[2])
image = torch.zeros(1, *model.pretrained_cfg["input_size"])
with torch.no_grad():
    output = model(image)
spent = time.process_time()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
mb = {key: int(status[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon")}
print(json.dumps({"torch": torch_alone, "cpu": spent, "modules": len(sys.modules), **mb, "output": float(output.sum()),
    "libraries": [name for name in sys.argv[3:] if name in sys.modules]}))
"""


def once(folder: Path, structure: str) -> dict[str, object]:
    """What one fresh process says, and the CPU seconds of all of it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", CODE, str(folder), structure, *LIBRARIES]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(said), "whole": whole}


def main() -> None:
    """Print a row for each structure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="resnet50d_pruned_25")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small model, one round")
    asked = parser.parse_args()
    name, rounds = ("digits_cnn_pruned_25", 1) if asked.quick else (asked.name, asked.rounds)
    with tempfile.TemporaryDirectory() as place:
        folder = add_graph(zoo.save(zoo.create(name), Path(place) / name))
        runs: dict[str, list[dict[str, object]]] = {"plan": [], "graph": []}
        for structure in (*runs, *(each for _ in range(rounds) for each in runs)):
            runs[structure].append(once(folder, structure))
    print(f"{name}, median of {rounds} fresh processes in turns")
    print(f"{'':8}{'torch s':>9}{'output s':>10}{'whole s':>9}{'modules':>9}{'MB':>7}{'own MB':>8}  libraries")
    for structure, all_of_it in runs.items():
        row = {key: statistics.median(run[key] for run in all_of_it[1:]) for key in all_of_it[0] if key != "libraries"}
        figures = f"{row['torch']:9.2f}{row['cpu']:10.2f}{row['whole']:9.2f}{row['modules']:9.0f}"
        memory = f"{row['VmRSS']:7.0f}{row['RssAnon']:8.0f}"
        print(f"{structure:8}{figures}{memory}  {', '.join(all_of_it[-1]['libraries']) or 'none of them'}")
    outputs = {run["output"] for each in runs.values() for run in each}
    print("outputs are equal" if len(outputs) == 1 else f"OUTPUTS DIFFER: {outputs}")


if __name__ == "__main__":
    main()
