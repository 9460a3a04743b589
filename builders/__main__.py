"""`python -m builders NAME`: make one family as its recipes say; `--all --on ADDRESS`: all of them, on a cluster."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from builders.costs import Cost, cost, hours
from builders.family import Run, builds, noted, tasks, trains
from builders.jobs import JOBS, Job
from zoo.cli.clustering import carried_out, on_cluster
from zoo.cli.tables import as_json, say, say_json, table
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
OUT = Path("build")
APART = ("every", "address", "kind", "costs", "price", "as_json", "out")  # options that no job takes


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
@click.option("--all", "every", is_flag=True, help="Every family, in place of NAME; for the next three.")
@on_cluster
@click.option("--print", "kind", type=click.Choice([*JOBS]), help="Print the shell lines of such jobs, one a model.")
@click.option("--costs", is_flag=True, help="Print the GPU hours of each family, as estimated.")
@click.option("--price", type=click.FloatRange(0), metavar="DOLLARS", help="Of a GPU hour, for --costs.")
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
@as_json
def main(
    name: str | None,
    models: tuple[str, ...],
    every: bool,
    address: str | None,
    kind: str | None,
    costs: bool,
    price: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Build the family or file NAME, or some MODELs of it; the same command goes on where it was stopped.

    On several GPUs: accelerate launch -m builders NAME ...; on several machines DIR must be a folder that all of them
    see. Many models on many machines: --on ADDRESS, from one of the cluster's nodes; a model whose node dies is begun
    again on another one, and goes on from its last checkpoint if that one sees DIR. Other schedulers take what --print
    prints: python -m builders --all --print slurm | sh.
    """
    context = click.get_current_context()
    _check(context.params)
    names = [name] if name else [*FAMILIES]
    try:
        run = _run(models, options)
        if costs:
            _print_costs([cost(family, run) for family in names], price, as_json)
            return
        made = _here(names[0], run)
        if kind:
            made = JOBS[kind](_jobs(names, run, kind), _words(context, kind))
        elif address:
            made = _on_cluster(names, run, address)
        for line in made:
            say(line)
    except ZooError as error:
        raise click.ClickException(str(error)) from None


def _check(asked: Mapping[str, Any]) -> None:
    """Refuse what can't be meant together."""
    name, data, apart = asked["name"], asked["data"], [asked[key] for key in ("address", "kind", "costs")]
    away = asked["kind"] == "hf-jobs"
    wrong = {
        "name a family or a file of recipes, or say --all": asked["every"] == bool(name),
        "--on, --print and --costs are three things": sum(map(bool, apart)) > 1,
        "--all is for --on, --print or --costs; --on auto is this machine": asked["every"] and not any(apart),
        "--data is of one family: with --all each takes its own": asked["every"] and data,
        "--price and --json are of --costs": not asked["costs"] and (asked["price"] is not None or asked["as_json"]),
        "--costs is of families, not of files": asked["costs"] and name and name.endswith(".toml"),
        "--push publishes models that were made: not with --smoke or --plan-only": asked["organisation"]
        and (asked["smoke"] or asked["plan_only"]),
        "--steps is of the real recipes: not with --smoke": asked["steps"] and asked["smoke"],
        "what such a job makes is lost with it: say --push ORG": away and not asked["organisation"],
        "such a job sees no files of this machine: name a family, and data of the Hub": away
        and ((name or "").endswith(".toml") or (data and Path(data).exists())),
    }
    for why, so in wrong.items():
        if so:
            raise click.UsageError(why)


def _run(models: tuple[str, ...], options: dict[str, Any]) -> Run:
    """What the command asks for; what `Run` lacks is the machine's."""
    own = {field.name: options.pop(field.name) for field in fields(Run) if field.name in options}
    return Run(models, machine=Machine(**options), **own)


def _here(name: str, run: Run) -> Iterator[str]:
    """Make one family with all processes that were started together; the main one speaks."""
    main = processes().is_main_process
    for made in builds(name, replace(run, say=lambda line: say(line, err=True) if main else None)):
        if main:
            yield str(made)


def _on_cluster(names: list[str], run: Run, address: str) -> Iterator[str]:
    """Make each model by a task of its own, all of them in one folder; what fails is told, and the others go on."""
    failed = 0
    for ended in carried_out(asked := tasks(names, replace(run, out=run.out or OUT)), address):
        if ended.error:
            failed += 1
            say(f"{ended.name}: {ended.error}", err=True)
        else:
            yield from map(str, ended.value)
    if failed:
        raise click.ClickException(f"{failed} of {len(asked)} models weren't made; the same command goes on with them")


def _jobs(names: list[str], run: Run, kind: str) -> list[Job]:
    """Each model as a job; what it costs is counted where there is a limit to set."""
    timed = kind == "hf-jobs"
    return [
        Job(entry.name, name, trains(entry.recipe), hours(entry, name, run.steps) if timed else 0.0)
        for name in names
        for entry in noted(name, run)
    ]


def _words(context: click.Context, kind: str) -> list[str]:
    """The options of the command that each job takes too."""
    words, asked = [], context.params
    for option in context.command.params:
        typed = context.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
        if isinstance(option, click.Option) and typed and option.name not in APART:
            words += [option.opts[0], *([] if option.is_flag else [str(asked[option.name])])]
    return words + (["--out", str(asked["out"] or OUT)] if kind == "slurm" else [])


def _print_costs(found: Sequence[Cost], price: float | None, as_json: bool) -> None:
    """A row for each family, and one for all."""
    if as_json:
        dollars = [{} if price is None else {"dollars": each.total * price} for each in found]
        say_json(
            [
                {"family": each.family, "gpu_hours": each.total, "models": each.hours, **more}
                for each, more in zip(found, dollars, strict=True)
            ]
        )
        return
    everything = Cost("all", {name: taken for each in found for name, taken in each.hours.items()})
    rows = [
        [
            each.family,
            f"{len(each.hours):,}",
            f"{each.total:,.0f}",
            *([] if price is None else [f"{each.total * price:,.0f}"]),
        ]
        for each in (*found, everything)
    ]
    table(["family", "models", "GPU hours", *([] if price is None else ["dollars"])], rows)


if __name__ == "__main__":
    main()
