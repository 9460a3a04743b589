"""What `zoo compress --method NAME --help` says: every option of a method and of its training, from its declaration."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import click

from zoo.catalog.methods import METHODS, Apart, available
from zoo.declarations import arguments, meanings

Rows = list[tuple[str, str]]
_METHOD = "zoo.method"
OURS = ("input_size", "is_training", "mean", "std", "use_prefetcher", "separate", "normalize")
"""Arguments of timm's transform that the model or the loader decides."""


class Compress(click.Command):
    """A command whose help tells the options of the method that is named beside it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note the method first, as --help ends the reading of what follows it."""
        for word, following in zip(args, [*args[1:], ""], strict=True):
            name = following if word == "--method" else word.removeprefix("--method=")
            if name in available() and word.startswith("--method"):
                ctx.meta[_METHOD] = name
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's options, then the method's."""
        super().format_options(ctx, formatter)
        for title, rows in sections(ctx.meta[_METHOD]) if _METHOD in ctx.meta else ():
            with formatter.section(title):
                formatter.write_dl(rows)


def sections(method: str) -> Iterator[tuple[str, Rows]]:
    """What a method and its training are told by: a title, and of each option its name, type, default and meaning."""
    from zoo.compression import algorithm
    from zoo.training.distillation import Distil
    from zoo.training.schedule import Schedule

    chosen = algorithm(method)
    yield f"{method}: {METHODS[method].words}. Its options, by --set KEY=VALUE", [*_rows(chosen.declaration)]
    trains = chosen.schedule is not None
    others = [*_rows(Apart, skip=("seed", *(() if trains else ("schedule", "augment"))))]
    yield "Options of any method" if not trains else "Options of any method that trains", others
    if trains:
        yield f"{method}'s own training, by --set 'schedule={{\"FIELD\": VALUE}}'", [*_rows(Schedule, chosen.schedule)]
    yield "The training that may follow, by --epochs, --lr and so on; in a recipe schedule.FIELD", [*_rows(Schedule)]
    yield "Its loss; in a recipe distil.FIELD", [*_rows(Distil)]
    yield "Augmentation of either training, by --augment KEY=VALUE, as timm's training transform takes it", _augment()


def _rows(declaration: Any, values: Any = None, skip: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Name and words of each field; the defaults are those of some other value where one is given."""
    for each in arguments(declaration):
        default = each.default if values is None else getattr(values, each.name)
        if each.name not in skip:
            yield each.name, f"{each.meaning}; {each.kind}.  [default: {_written(default)}]"


def _written(value: Any) -> str:
    return "none" if value is None or value in ((), {}) else f"{value:g}" if isinstance(value, float) else str(value)


def _augment() -> Rows:
    """The arguments of timm's training transform, as its own docstring tells them."""
    from timm.data.transforms_factory import create_transform

    said, values = meanings(inspect.getdoc(create_transform) or ""), inspect.signature(create_transform).parameters
    return [
        (name, f"{said[name] + '.  ' if name in said else ''}[default: {_written(each.default)}]")
        for name, each in values.items()
        if name not in OURS
    ]
