"""`zoo verify`: figures measured again."""

import os
from typing import Any

import click

from zoo.catalog.report import OBJECTS, Row, Verification
from zoo.cli.options import data_options
from zoo.cli.tables import as_json, figure, say, say_json, table

DTYPE_NAMES = ("float32", "float16", "bfloat16")


@click.command(
    epilog="\b\nzoo verify digits_cnn digits_vit\n"
    "zoo verify ./build/mine --data ./photographs --images 1000\n"
    "accelerate launch -m zoo verify me/mine --data ILSVRC/imagenet-1k\n",
)
@click.argument("names", nargs=-1, required=True)
@click.option("--data", help="Data set to evaluate on.  [default: the one that the results name]")
@click.option("--images", type=click.IntRange(1), help="Evaluate on at most so many, drawn from all of it.")
@click.option("--structure", "structure_only", is_flag=True, help="Only params and macs; needs no data.")
@click.option("--revision", help="Of models on the Hub: a commit, tag or branch.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda.")
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), help="Precision of the weights.  [default: as stored]")
@click.option("--size", type=click.IntRange(1), help="Side of the images in pixels.  [default: the model's]")
@click.option("--crop-pct", type=click.FloatRange(0, 1, min_open=True), help="Share of the shorter side that is seen.")
@click.option("--batch-size", type=click.IntRange(1), help="Images of a batch.  [default: 32 on the CPU, 256]")
@click.option("--workers", type=click.IntRange(0), help="Processes that load images.  [default: by their number]")
@data_options
@as_json
def verify(
    names: tuple[str, ...],
    as_json: bool,
    dtype: str | None,
    data: str | None,
    skip_damaged: bool,
    labels: Any,
    **options: Any,
) -> None:
    """Measure the models NAMES again.

    Each is a name of the list, ORG/NAME on the Hub, a repository's folder, or a timm id such as timm/resnet18.a1_in1k,
    of which nothing is claimed. What is measured is compared with what is claimed; the exit code is 1 if a figure
    differs, or none that is claimed on images could be judged: on other images or some of them, in another precision,
    at another size or crop, such claims are shown and not judged.
    """
    import torch

    from zoo.verbs.verification import verify

    options["dtype"] = dtype and getattr(torch, dtype)
    if data is None and (skip_damaged or labels):
        raise click.UsageError("--skip-damaged and --labels are of a data set: name it by --data")
    options |= {"skip_damaged": skip_damaged, "labels": labels}
    verifications = [verify(name, data=data, **options) for name in names]
    if os.environ.get("RANK", "0") == "0":  # of several processes one prints
        _print(verifications, as_json)
        for each in verifications:
            if each.unjudged:
                say(f"{each.name}: no claim on images was judged ({each.unjudged}), so it isn't verified", err=True)
    if not all(each.passed for each in verifications):
        raise SystemExit(1)


def _print(verifications: list[Verification], as_json: bool) -> None:
    if as_json:
        say_json([each.to_json() for each in verifications])
    elif len(verifications) == 1:
        rows = [
            [row.figure, figure(row.reported), figure(row.measured), figure(row.difference), row.verdict]
            for row in verifications[0].rows
            if not row.of
        ]
        table([verifications[0].name, "claimed", "measured", "difference", "verdict"], rows)
        if verifications[0].report.classes:
            _print_classes(verifications[0])
    else:
        figures = list(dict.fromkeys(row.figure for each in verifications for row in each.rows if not row.of))
        table(["name", *figures, "verdict"], [_summary(each, figures) for each in verifications])


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
    measured = {row.figure: figure(row.measured) for row in verification.rows if not row.of}
    wrong = [
        f"{row.figure}{f' of {row.of}' if row.of else ''} {row.verdict}, claimed {figure(row.reported)}"
        for row in verification.rows
        if row.verdict not in ("agrees", "measured", row.note)
    ]
    claimed = any(row.verdict == "agrees" for row in verification.rows)
    verdict = "; ".join(wrong) or ("agrees" if claimed else "nothing claimed")
    return [verification.name, *(measured.get(figure, "-") for figure in figures), verdict]
