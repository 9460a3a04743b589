"""`python -m builders NAME`: make one family as its recipes say; `--all --on ADDRESS`: all of them, on a cluster."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from builders.family import Run, builds, tasks
from zoo.cli.clustering import carried_out, on_cluster
from zoo.cli.tables import say
from zoo.errors import ZooError
from zoo.training.schedule import PRECISIONS, Machine
from zoo.verbs.beginning import processes

FAMILIES = (
    "digits",
    "cifar_resnet20",
    "int8",
    "fbnetv3_g",
    "efficientnetv2_b0",
    "deit3_small",
    "resnet18",
    "resnet50d",
    "convnext_femto",
    "convnextv2_nano",
    "rexnetr_200",
    "poolformerv2_s24",
    "beit_base",
    "efficientformerv2_s2",
    "convformer_s18",
    "mobilevitv2_200",
    "swinv2_cr_tiny",
    "yolov8n",
)


class _Name(click.Choice[str]):
    """A family, or a file of recipes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same name."""
        return str(value if value.endswith(".toml") else super().convert(value, param, ctx))


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"NAME is a file of recipes, FILE.toml, or one of: {', '.join(FAMILIES)}.",
)
@click.argument("name", metavar="[NAME]", type=_Name(FAMILIES), required=False)
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every family in place of NAME; with --on.")
@on_cluster
@click.option("--data", metavar="PATH|HUB_ID", help="Folder of train/CLASS and validation/CLASS, or a Hub id.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Train for so many steps at most.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Of the repositories.  [default: build]")
@click.option("--push", "organisation", metavar="ORG", help="Publish them at the Hub, as ORG/MODEL.")
@click.option("--smoke", is_flag=True, help="A stand-in in seconds: random weights, noise, the same code. No network.")
@click.option("--plan-only", is_flag=True, help="Write the plans and compare their costs, without fine-tuning.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of training.  [default: what accelerate launch said]")
@click.option("--accumulation", type=click.IntRange(1), default=1, metavar="N", help="Compute a batch in N parts.")
@click.option("--channels-last", is_flag=True, help="Lay images out as tensor cores want them.")
@click.option("--compile", is_flag=True, help="torch.compile the student.")
@click.option("--workers", type=click.IntRange(0), metavar="N", help="Loading processes of each training process.")
@click.option("--sync-bn", is_flag=True, help="Take batch norm's statistics over all GPUs' images.")
@click.option("--log-with", metavar="TRACKER", help="tensorboard, trackio, or another that accelerate knows.")
def main(
    name: str | None,
    models: tuple[str, ...],
    every: bool,
    address: str | None,
    data: str | None,
    steps: int | None,
    out: Path | None,
    organisation: str | None,
    smoke: bool,
    plan_only: bool,
    **machine: Any,
) -> None:
    """Build the family or file NAME, or some MODELs of it; the same command goes on where it was stopped.

    On several GPUs: accelerate launch -m builders NAME ...; on several machines DIR must be a folder that all of them
    see. Many models on many machines: --on ADDRESS, from one of the cluster's nodes, whose models of digits go to DIR
    too; a model whose node dies is begun again on another one, and goes on from its last checkpoint if that one sees
    DIR.
    """
    if every == bool(name):
        raise click.UsageError("name a family or a file of recipes, or say --all")
    if every and not address:
        raise click.UsageError("--all is for a cluster: --on auto makes one of this machine")
    if organisation and (smoke or plan_only):
        raise click.UsageError("--push publishes models that were made: not with --smoke or --plan-only")
    if steps and smoke:
        raise click.UsageError("--steps is of the real recipes: not with --smoke")
    names = [name] if name else [*FAMILIES]
    try:
        run = Run(models, data, steps, out, organisation, smoke, plan_only, Machine(**machine))
        for made in _on_cluster(names, run, address) if address else _here(names[0], run):
            say(made)
    except ZooError as error:
        raise click.ClickException(str(error)) from None


def _here(name: str, run: Run) -> Iterator[str]:
    """Make one family with all processes that were started together; the main one speaks."""
    main = processes().is_main_process
    for made in builds(name, replace(run, say=lambda line: say(line, err=True) if main else None)):
        if main:
            yield str(made)


def _on_cluster(names: list[str], run: Run, address: str) -> Iterator[str]:
    """Make each model by a task of its own, all of them in one folder; what fails is told, and the others go on."""
    failed = 0
    for ended in carried_out(asked := tasks(names, replace(run, out=run.out or Path("build"))), address):
        if ended.error:
            failed += 1
            say(f"{ended.name}: {ended.error}", err=True)
        else:
            yield from map(str, ended.value)
    if failed:
        raise click.ClickException(f"{failed} of {len(asked)} models weren't made; the same command goes on with them")


if __name__ == "__main__":
    main()
