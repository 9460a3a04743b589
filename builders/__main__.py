"""`python -m builders NAME`: make one family as its recipes say."""

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from builders.family import Run, build
from zoo.cli.tables import say
from zoo.errors import ZooError
from zoo.training.schedule import PRECISIONS, Machine
from zoo.verbs.beginning import processes
from zoo.verbs.recipes import recipes_in

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
@click.argument("name", metavar="NAME", type=_Name(FAMILIES))
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--data", metavar="PATH|HUB_ID", help="Folder of train/CLASS and validation/CLASS, or a Hub id.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Train for so many steps at most.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Of the repositories.  [default: build]")
@click.option("--push", "organisation", metavar="ORG", help="Publish them at the Hub, as ORG/MODEL.")
@click.option("--smoke", is_flag=True, help="A stand-in in seconds: random weights, noise, the same code. No network.")
@click.option("--plan-only", is_flag=True, help="Write the plans and compare their costs, without fine-tuning.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of training.  [default: what accelerate launch said]")
@click.option("--accumulation", type=click.IntRange(1), default=1, metavar="N", help="Compute a batch in N parts.")
@click.option("--channels-last", is_flag=True, help="Lay images out as tensor cores want them.")
@click.option("--compile", "compiled", is_flag=True, help="torch.compile the student.")
@click.option("--workers", type=click.IntRange(0), metavar="N", help="Loading processes of each training process.")
@click.option("--sync-bn", is_flag=True, help="Take batch norm's statistics over all GPUs' images.")
@click.option("--log-with", metavar="TRACKER", help="tensorboard, trackio, or another that accelerate knows.")
def main(
    name: str,
    models: tuple[str, ...],
    data: str | None,
    steps: int | None,
    out: Path | None,
    organisation: str | None,
    smoke: bool,
    plan_only: bool,
    precision: str | None,
    accumulation: int,
    channels_last: bool,
    compiled: bool,
    workers: int | None,
    sync_bn: bool,
    log_with: str | None,
) -> None:
    """Build the family or file NAME, or some MODELs of it; the same command goes on where it was stopped.

    On several GPUs: accelerate launch -m builders NAME ...; on several machines DIR must be a folder that all of them
    see.
    """
    if organisation and (smoke or plan_only):
        raise click.UsageError("--push publishes models that were made: not with --smoke or --plan-only")
    if steps and smoke:
        raise click.UsageError("--steps is of the real recipes: not with --smoke")
    try:
        main_process = processes().is_main_process
        machine = Machine(precision, accumulation, channels_last, compiled, workers, log_with, sync_bn=sync_bn)
        run = Run(
            models=models,
            data=data,
            steps=steps,
            out=out,
            organisation=organisation,
            smoke=smoke,
            plan_only=plan_only,
            machine=machine,
            say=lambda line: say(line, err=True) if main_process else None,
        )
        of_file = name.endswith(".toml")
        for made in build(recipes_in(Path(name)), run) if of_file else import_module(f"builders.{name}").build(run):
            if main_process:
                say(str(made))
    except ZooError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
