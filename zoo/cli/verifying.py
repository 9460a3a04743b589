"""`zoo verify`: figures measured again."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import click

from zoo import catalog
from zoo.catalog.data_names import NAMED
from zoo.catalog.report import COSTS, OBJECTS, Row, Verification
from zoo.cli.clustering import carried_out, on_cluster
from zoo.cli.options import data_options
from zoo.cli.tables import as_json, figure, say, say_json, table
from zoo.cluster import Task
from zoo.errors import DataError, UnknownName, ZooError

NEARLY_EXACT = (*COSTS, "kl", "bytes", "graph")
DTYPE_NAMES = ("float32", "float16", "bfloat16")


@click.command(
    epilog="\b\nzoo verify digits_cnn digits_vit\n"
    "zoo verify ./build/mine --data ./photographs --images 1000\n"
    "zoo verify --all --save ./results\n"
    "zoo verify --all --on auto --save ./results\n"
    "accelerate launch -m zoo verify me/mine --data ILSVRC/imagenet-1k --precision bf16\n",
)
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every model of the list that can be loaded and whose data is here.")
@click.option("--data", help="Data set to evaluate on.  [default: the one that the results name]")
@click.option("--images", type=click.IntRange(1), help="Evaluate on at most so many, drawn from all of it.")
@click.option("--structure", "structure_only", is_flag=True, help="Only params and macs; needs no data.")
@click.option("--revision", help="Of models on the Hub: a commit, tag or branch.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda.")
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), help="Precision of the weights.  [default: as stored]")
@click.option("--precision", type=click.Choice(("bf16", "fp16")), help="Of products, by autocast.  [default: none]")
@click.option("--channels-last", is_flag=True, help="Compute channels last.")
@click.option("--compile", is_flag=True, help="Compute by torch.compile.")
@click.option("--size", type=click.IntRange(1), help="Side of the images in pixels.  [default: the model's]")
@click.option("--crop-pct", type=click.FloatRange(0, 1, min_open=True), help="Share of the shorter side that is seen.")
@click.option("--batch-size", type=click.IntRange(1), help="Images of a batch.  [default: 32 on the CPU, 256]")
@click.option("--workers", type=click.IntRange(0), help="Processes that load images.  [default: by their number]")
@click.option("--save", type=click.Path(file_okay=False, path_type=Path), help="Write a file NAME.json for each here.")
@click.option("--again", is_flag=True, help="Also measure those that --save has.")
@on_cluster
@data_options
@as_json
def verify(
    names: tuple[str, ...],
    every: bool,
    as_json: bool,
    dtype: str | None,
    data: str | None,
    skip_damaged: bool,
    labels: Any,
    precision: str | None,
    save: Path | None,
    again: bool,
    address: str | None,
    **options: Any,
) -> None:
    """Measure the models NAMES again.

    Each is a name of the list, ORG/NAME on the Hub, a repository's folder, or a timm id such as timm/resnet18.a1_in1k,
    of which nothing is claimed; with * or ? it means all of the list that it fits. Models on the same data share a pass
    over the images, up to eight. What is measured is compared with what is claimed, and may be off by what stands
    behind ±; the exit code is 1 if a figure differs, or none that is claimed on images could be judged: on other images
    or some of them, in another precision, at another size or crop, such claims are shown and not judged.

    A list that was cut off goes on with --save: a model whose file there has the same weights, claims, data and
    settings isn't measured again. On a cluster each model is a pass of its own, and --save a folder that all nodes see.
    """
    import torch

    from zoo.verbs.recorded import verify_list

    options |= {"dtype": dtype and getattr(torch, dtype), "precision": precision or ""}
    if data is None and (skip_damaged or labels):
        raise click.UsageError("--skip-damaged and --labels are of a data set: name it by --data")
    options |= {"data": data, "skip_damaged": skip_damaged, "labels": labels}
    chosen = _chosen(names, every, anywhere=data is not None or options["structure_only"])
    first, failed = os.environ.get("RANK", "0") == "0", []  # of several processes one prints

    def refused(name: str, error: ZooError) -> None:
        left_out = every and isinstance(error, DataError)
        failed.extend([] if left_out else [name])
        if first:
            say(f"{name}: {'left out: ' * left_out}{error}", err=True)

    if address:
        tasks = [Task(name, partial(_alone, name, options, save, again), options["device"] != "cpu") for name in chosen]
        found = _on_cluster(tasks, address, refused)
    else:
        found = verify_list(chosen, options, save, again=again, refused=refused if len(chosen) > 1 else None)
    verifications = [*found]
    if first:
        _print(verifications, as_json)
        for each in verifications:
            if each.unjudged:
                say(f"{each.name}: no claim on images was judged ({each.unjudged}), so it isn't verified", err=True)
    if failed or not all(each.passed for each in verifications):
        raise SystemExit(1)


def _on_cluster(
    tasks: Sequence[Task], address: str, refused: Callable[[str, ZooError], None]
) -> Iterator[Verification]:
    """The Verification of each model that can be verified, in the order of the tasks."""
    ended = {each.name: each for each in carried_out(tasks, address)}
    for each in (ended[task.name] for task in tasks):
        if each.error:
            refused(each.name, each.error)
        else:
            yield each.value


def _alone(
    name: str, options: Mapping[str, Any], save: Path | None, again: bool, say: Callable[[str], None]
) -> Verification:
    """One model's Verification, as a task."""
    from zoo.verbs.recorded import verify_list

    return next(verify_list([name], options, save, again=again))


def _chosen(names: tuple[str, ...], every: bool, anywhere: bool) -> list[str]:
    """The models that are meant, each once.

    Args:
        names: as they were typed, or patterns of the catalog's.
        every: all of the catalog that can be loaded.
        anywhere: whatever their data is; else, of `every`, those whose data is in the package.
    """
    if every == bool(names):
        raise click.UsageError("name models, or say --all")
    loadable = [name for name in catalog.names() if catalog.obstacle(catalog.info(name)) is None]
    if every:
        return [name for name in loadable if anywhere or catalog.info(name).dataset in NAMED]
    chosen = {
        name: [each for each in loadable if fnmatch(each, name)] if set("*?") & set(name) else [name] for name in names
    }
    for name, fitting in chosen.items():
        if not fitting:
            raise UnknownName(f"no model that can be loaded fits {name!r}; zoo list shows them")
    return list(dict.fromkeys(each for fitting in chosen.values() for each in fitting))


def _print(verifications: list[Verification], as_json: bool) -> None:
    if as_json:
        say_json([each.to_json() for each in verifications])
    elif len(verifications) == 1:
        rows = [
            [row.figure, *map(figure, (row.reported, row.measured, row.difference, _within(row))), row.verdict]
            for row in verifications[0].rows
            if not row.of
        ]
        table([verifications[0].name, "claimed", "measured", "difference", "±", "verdict"], rows)
        if verifications[0].report.classes:
            _print_classes(verifications[0])
    else:
        figures = list(dict.fromkeys(row.figure for each in verifications for row in each.rows if not row.of))
        table(["name", *figures, "verdict"], [_summary(each, figures) for each in verifications])


def _within(row: Row) -> float | None:
    """By how much a figure may be off what is claimed; None where nothing is held against it."""
    return None if row.note or row.difference is None else row.tolerance


def _cell(row: Row) -> str:
    """A figure, with how far it may be off if it is an accuracy."""
    held = _within(row) is not None and row.figure not in NEARLY_EXACT
    return f"{figure(row.measured)} ±{figure(row.tolerance)}" if held else figure(row.measured)


def _print_classes(verification: Verification) -> None:
    """The figures of each class, claimed beside measured."""
    rows, classes = {(row.of, row.figure): row for row in verification.rows}, verification.report.classes
    keys = [key for key in dict.fromkeys(k for each in classes.values() for k in each) if key != OBJECTS]
    lines = []
    for name, measured in classes.items():
        own = [rows.get((name, key), Row(key, None, None)) for key in keys]
        cells = [figure(value) for row in own for value in (row.reported, row.measured)]
        verdicts = dict.fromkeys(row.verdict for row in own if (name, row.figure) in rows)
        lines.append([name, f"{measured.get(OBJECTS, 0):,}", *cells, ", ".join(verdicts) or "-"])
    table(["class", OBJECTS, *(cell for key in keys for cell in (f"{key} claimed", "measured")), "verdict"], lines)


def _summary(verification: Verification, figures: list[str]) -> list[str]:
    """One model in one row: what was measured, and what differs from the claim."""
    measured = {row.figure: _cell(row) for row in verification.rows if not row.of}
    wrong = [
        f"{row.figure}{f' of {row.of}' if row.of else ''} {row.verdict}, claimed {figure(row.reported)}"
        for row in verification.rows
        if row.verdict not in ("agrees", "measured", row.note)
    ]
    claimed = any(row.verdict == "agrees" for row in verification.rows)
    verdict = "; ".join(wrong) or ("agrees" if claimed else "nothing claimed")
    return [verification.name, *(measured.get(figure, "-") for figure in figures), verdict]
