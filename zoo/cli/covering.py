"""`zoo coverage`: what can be pruned, and the structures that published figures ask for."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from zoo.cli.tables import as_json, say, say_json, table


@click.command(epilog="\b\nzoo coverage timm/resnet18 timm/nest_tiny_jx --macs 0.5\nzoo coverage --targets")
@click.argument("models", nargs=-1)
@click.option("--targets", is_flag=True, help="Build every published pruned model's structure instead.")
@click.option("--macs", type=click.FloatRange(0.01, 1), default=0.5, show_default=True, help="Share that is left.")
@as_json
def coverage(models: tuple[str, ...], targets: bool, macs: float, as_json: bool) -> None:
    """Show what can be pruned of MODELS, and why the rest can't.

    MODELS are names of the list, or bases such as timm/resnet18. Every group of channels is cut alike until the share
    is left, and the cut is compared with the masked dense model. Weights are random; nothing is fetched.
    """
    if targets:
        _targets(models, as_json)
        return
    if not models:
        raise click.UsageError("name a model, such as timm/resnet18, or say --targets")
    from zoo.verbs.coverage import coverage

    reports = [coverage(name, macs) for name in models]
    if as_json:
        say_json([asdict(each) for each in reports])
        return
    head = ["model", "groups", "prunable", "residual", "heads", "macs left", "saved as", "off", "seconds"]
    rows = [
        [
            each.name,
            each.groups,
            *(f"{share:.1%}" for share in (each.prunable, each.residual, each.heads, each.kept)),
            each.structure or "-",
            f"{each.off:.0e}",
            f"{each.seconds:.1f}",
        ]
        for each in reports
    ]
    table(head, rows)
    for each in reports:
        if each.error:
            say(f"{each.name}: {each.error}")
        for reason, count in Counter(each.frozen.values()).most_common():
            paths = [path for path, why in each.frozen.items() if why == reason]
            say(f"{each.name}: {count} left whole, {reason}: {', '.join(paths[:3])}{', ...' * (count > 3)}")


def _targets(names: tuple[str, ...], as_json: bool) -> None:
    """Build each structure, save it, and let a fresh process load all of them again."""
    from tqdm import tqdm

    from zoo.verbs.coverage import build_target, targets

    with tempfile.TemporaryDirectory() as place:
        rows = [build_target(name, Path(place) / name) for name in tqdm(names or targets(), disable=None, leave=False)]
        code = "import sys, json, zoo.verbs.coverage as c; print(json.dumps([c.outputs_of(f) for f in sys.argv[1:]]))"
        folders = [str(Path(place) / row.name) for row in rows]
        done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)
        again = json.loads(done.stdout.splitlines()[-1])
    same = [row.outputs == other for row, other in zip(rows, again, strict=True)]
    if as_json:
        plain = [{**asdict(row), "rebuilt_equal": equal} for row, equal in zip(rows, same, strict=True)]
        say_json(plain)
    else:
        head = ["model", "macs", "published", "off", "params", "published", "off", "seconds", "rebuilt"]
        table(
            head,
            [
                [
                    row.name,
                    f"{row.macs:.3f}",
                    f"{row.macs_published:.3f}",
                    f"{row.macs / row.macs_published - 1:+.2%}",
                    f"{row.params:.3f}",
                    f"{row.params_published:.3f}" if row.params_published else "-",
                    f"{row.params / row.params_published - 1:+.1%}" if row.params_published else "-",
                    f"{row.seconds:.1f}",
                    "equal" if equal else "DIFFERENT",
                ]
                for row, equal in zip(rows, same, strict=True)
            ],
        )
    if not all(same):
        sys.exit(1)
