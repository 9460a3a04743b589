"""`zoo bench`: how long models take on this machine, beside the dense ones that they must beat."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.checks import check_base
from zoo.cli.options import Counts, Size
from zoo.cli.tables import as_json, say, say_json, table, three_digits

if TYPE_CHECKING:
    from zoo.verbs.benching import Bench, Row

CLOCKS = ("wall", "cpu")
BACKENDS = ("eager", "compile", "onnxruntime")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@click.command(
    epilog="\b\nzoo bench resnet50d_pruned_25 resnet50d_pruned_56 --batch 1,16\n"
    "zoo bench digits_cnn_int8 --backend onnxruntime --threads 1\n"
    "zoo bench mine.onnx ./build/mine --base timm/resnet18 --backend onnxruntime --plot bench.png\n",
)
@click.argument("names", nargs=-1, required=True)
@click.option("--base", metavar="NAME", help="Compare with this one.  [each one's own dense base]")
@click.option("--alone", is_flag=True, help="Compare with nothing.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda.")
@click.option("--batch", "batches", type=Counts(), default="1", show_default=True, help="Images of a call: 1,16.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [as many as torch takes]")
@click.option("--backend", type=click.Choice(BACKENDS), help="What computes.  [eager; of ONNX files onnxruntime]")
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the floats.  [each model's own]")
@click.option("--rounds", type=click.IntRange(15), default=50, show_default=True, help="Turns of each model.")
@click.option(
    "--clock", type=click.Choice(CLOCKS), default="wall", show_default=True, help="cpu: of this process alone."
)
@click.option("--input", "size", type=Size(), help="Channels, height, width: 3x224x224.  [each model's own]")
@click.option("--cold", is_flag=True, help="Also start each in fresh processes: seconds to the first output, memory.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw bars with intervals into a PNG.")
@as_json
def bench(
    names: tuple[str, ...],
    base: str | None,
    alone: bool,
    batches: tuple[int, ...],
    dtype: str | None,
    size: tuple[int, int, int] | None,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Time the models NAMES on this machine, each beside the dense one that it was made of.

    A name is one of the list, a repository's folder, ORG/NAME on the Hub, a base such as timm/resnet18 or
    torchvision/resnet50, or an ONNX file. No weights are fetched: structure is what takes time.

    Models take turns, in an order that is drawn anew each round, and are compared round by round. Intervals hold the
    median but for one time in 10,000. A copy of the base takes part: what differs less from the base than the copy may,
    or less than 3 %, is "no difference", or "can't tell" where the interval is wide. Then more --rounds may help, or a
    machine that does nothing else; or --threads 1 --clock cpu, which doesn't count what others compute.

    --cold gives medians of three processes each: memory is the most that one held, libraries among it.
    """
    if base and alone:
        raise click.UsageError("--base and --alone: leave one of them out")
    for name in (*names, *([base] if base else [])):
        if not name.endswith(".onnx"):
            check_base(name)
    from zoo.errors import require

    if plot:
        require("matplotlib", "build")  # before what takes time
    import torch

    from zoo.verbs.benching import bench

    asked = {"base": base or not alone, "batch": batches, "input": size, **options}
    found = bench(names, dtype=getattr(torch, dtype) if dtype else None, **asked)
    if as_json:
        say_json(found.to_json())
    else:
        _print(found)
    if plot:  # where it can't be written the table was told all the same
        from zoo.pages.latency_bars import draw

        title = f"{found.machine}, {found.clock} time" + ", a busy machine" * bool(busy(found.waited, found.clock))
        draw(title, [_bar(row) for row in found.rows], plot)
        say(f"plot: {plot}", err=True)


def _print(found: "Bench") -> None:
    """The machine, a row for each model and batch, and what is to be known of them."""
    dtype, torch = found.dtype or "each model's own type", found.versions["torch"]
    say(f"{found.machine}; {found.device}, torch {torch}, {dtype}; {found.rounds} rounds in turns, medians")
    heads = [
        "model",
        "backend",
        "batch",
        "macs",
        "ms" if found.clock == "wall" else "CPU ms",
        "interval",
        "speed-up",
        "interval",
    ]
    cold = ["first output s", "memory MB"] if any(row.cold for row in found.rows) else []
    table([*heads, *cold], [_cells(row) for row in found.rows])
    computing = {(row.name, row.batch): row.backend for row in found.rows}
    others = [row.name for row in found.rows if row.base and computing[row.base, row.batch] != row.backend]
    if others:
        names = ", ".join(dict.fromkeys(others))
        say(f"{names}: computed by another backend than the base, and compared with that too: --backend onnxruntime")
    if said := busy(found.waited, found.clock):
        say(said)


def busy(waited: float | None, clock: str) -> str:
    """What is said where others had the cores for a share of the time, and milliseconds are of that clock."""
    from zoo.measurement.latency import BUSY

    if waited is None or waited <= BUSY:
        return ""
    said = f"this machine is busy: for {waited:.0%} of the time models were ready, and others had the cores"
    if clock == "cpu":
        return f"{said}, which isn't counted"
    advice = "use a free one, or --threads 1 --clock cpu"
    return f"{said}; how many milliseconds a model takes, or by how much one is faster, can't be told so: {advice}"


def _cells(row: "Row") -> list[str]:
    timing, cold = row.timing, row.cold
    beside = ["", ""]
    if timing.ratio is not None and timing.ratio_low is not None:
        beside = [_told(row), f"{timing.ratio_low:.2f} to {timing.ratio_high:.2f}"]
    elif timing.margin is not None:
        beside = ["base", f"told beyond {1 / (1 + timing.margin):.2f} to {1 + timing.margin:.2f}"]
    took = [f"{timing.ms:.3g}", f"{timing.low:.3g} to {timing.high:.3g}"]
    started = [f"{cold.cold_s:.2f}", f"{cold.memory_mb:,.0f}"] if cold else []
    return [row.name, row.backend, str(row.batch), three_digits(row.macs), *took, *beside, *started]


def _told(row: "Row") -> str:
    """A speed-up, where there is one."""
    return f"{row.timing.ratio:.2f}x" if row.verdict in ("faster", "slower") else str(row.verdict)


def _bar(row: "Row") -> tuple[str, int, float, float, float, str]:
    said = _told(row) if row.base else "base" if row.timing.margin else ""
    return row.name, row.batch, row.timing.ms, row.timing.low, row.timing.high, said
