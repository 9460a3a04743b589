"""What can be pruned of timm, one architecture per module (the smallest that can be built), beside Torch-Pruning.

scripts/bench/run coverage [--quick] [--jobs 1] [--seconds 120] [MODULE ...]

Ours cuts every group alike, half of the macs, and counts only if the cut computes what the masked dense model computes
(1e-6, double precision, batch 1 and 2). Torch-Pruning counts if the pruned model runs; it is given the classifier to
leave alone and the attention modules that have `qkv` and `num_heads`, and of its ways with heads the better. Each
runs in a process of its own; rows are kept in build/coverage and measured once.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
from timm.models._registry import _model_to_module
from tqdm import tqdm

from zoo.catalog.entry import Base
from zoo.errors import ZooError, first_line
from zoo.files import write_json
from zoo.measurement.macs import measure
from zoo.structure.base import skeleton
from zoo.verbs.coverage import coverage

CACHE = Path("build/coverage")
KINDS = ("zoo", "torch_pruning")
CLOSE = 1e-6


def architectures() -> dict[str, str]:
    """Module of timm → its smallest architecture."""
    path = CACHE / "architectures.json"
    if not path.exists():
        found: dict[str, tuple[int, str]] = {}
        for name in tqdm(timm.list_models(), desc="architectures"):
            size = sum(p.numel() for p in skeleton(Base(f"timm/{name}")).parameters())
            found[_model_to_module[name]] = min((size, name), found.get(_model_to_module[name], (size, name)))
        write_json(path, {module: name for module, (_, name) in sorted(found.items())})
    return json.loads(path.read_text())


def torch_pruning(name: str) -> dict[str, Any]:
    """Torch-Pruning's smallest share of the macs at the ratios that first reach a half, over its ways with heads."""
    from torch_pruning_rows import narrowed

    kept, reasons = [], []
    size = timm.get_pretrained_cfg(name).input_size
    for heads in (False, True):
        for ratio in (0.3, 0.4, 0.5):
            try:
                dense = timm.create_model(name).eval()
                kept.append(measure(narrowed(dense, size, ratio, heads), size).macs / measure(dense, size).macs)
            except Exception as error:  # whatever it or the model comes to
                reasons.append(f"{type(error).__name__}: {first_line(error)[:120]}")
                break
            if kept[-1] <= 0.5:
                return {"kept": kept[-1]}
    return {"kept": min(kept, default=1.0), "error": reasons[0] if reasons else None}


def row(kind: str, module: str, name: str, seconds: float) -> dict[str, Any]:
    """One row, measured in a process of its own."""
    path = CACHE / f"{module}-{kind}.json"
    if not path.exists():
        started = time.monotonic()
        try:
            command = [sys.executable, __file__, "--row", kind, name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            said = (done.stdout if done.returncode == 0 else done.stderr).splitlines() or [f"exit {done.returncode}"]
            found = json.loads(said[-1]) if done.returncode == 0 else {"error": said[-1][:160]}
        except subprocess.TimeoutExpired:
            found = {"error": f"no answer in {seconds:.0f} s"}
        write_json(path, {"name": name, **found, "wall": time.monotonic() - started})
    return json.loads(path.read_text())


def reached(found: dict[str, Any]) -> bool:
    """Whether half of the macs could be cut, and rightly so."""
    return found.get("kept", 1.0) <= 0.5 + 1e-9 and not found.get("error") and (found.get("off") or 0.0) <= CLOSE


def main() -> None:
    """Print a row for each module, then what they come to."""
    global CACHE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=120, help="that a row may take")
    parser.add_argument("--quick", action="store_true", help="one small architecture")
    parser.add_argument("--row", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        kind, name = arguments.row
        try:
            print(json.dumps(asdict(coverage(f"timm/{name}")) if kind == "zoo" else torch_pruning(name)))
        except ZooError as error:
            print(json.dumps({"error": str(error)}))
        return
    if arguments.quick:
        CACHE = Path("build/quick")
        shutil.rmtree(CACHE, ignore_errors=True)
        write_json(CACHE / "architectures.json", {"byobnet": "test_byobnet"})
    models = {m: n for m, n in architectures().items() if not arguments.modules or m in arguments.modules}
    todo = [(kind, module, name) for kind in KINDS for module, name in models.items()]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(tqdm(pool.map(lambda each: row(*each, arguments.seconds), todo), total=len(todo)))
    print(
        f"{'module':24}{'architecture':32}{'macs left':>10}{'prunable':>9}{'residual':>9}{'heads':>7}{'as':>7}"
        f"{'seconds':>9}{'Torch-Pruning':>15}  why not"
    )
    for module, name in models.items():
        ours, theirs = (row(kind, module, name, 0) for kind in KINDS)
        why = ours.get("error") or "; ".join(sorted(set(ours.get("frozen", {}).values())))
        cells = [f"{ours.get(key, 0):.2f}" for key in ("prunable", "residual", "heads")]
        print(
            f"{module:24}{name:32}{ours.get('kept', 1):>9.1%}{'' if reached(ours) else '!':1}{cells[0]:>9}{cells[1]:>9}"
            f"{cells[2]:>7}{ours.get('structure') or '-':>7}{ours.get('seconds', ours['wall']):9.1f}"
            f"{theirs.get('kept', 1) if reached(theirs) else 1:>14.1%}  {'' if reached(ours) else why[:120]}"
        )
    for kind in KINDS:
        found = [row(kind, module, name, 0) for module, name in models.items()]
        seconds = sorted(each["wall"] for each in found)
        good = sum(map(reached, found))
        print(
            f"{kind}: {good} of {len(found)} ({good / len(found):.1%}) at half of the macs; seconds: median "
            f"{seconds[len(seconds) // 2]:.1f}, most {seconds[-1]:.1f}"
        )


if __name__ == "__main__":
    main()
