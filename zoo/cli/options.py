"""Options that belong together, and how what is typed is read."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]
LOSS = ("alpha", "temperature", "divergence")  # of a distillation's options, those of the loss


class Range(click.FloatRange):
    """Numbers of a range, which alone would let nan through."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`0.5` → 0.5."""
        number: float = super().convert(value, param, ctx)
        return number if number == number else self.fail(f"{value} is not in the range {self}.", param, ctx)


class Share(Range):
    """A share above 0 and at most 1."""

    name = "share"

    def __init__(self) -> None:
        super().__init__(0, 1, min_open=True)


class Shares(Share):
    """Several shares, with commas between them."""

    name = "shares"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`0.9,0.5` → [0.9, 0.5]."""
        return [super(Shares, self).convert(each, param, ctx) for each in value.split(",")]


class Numbers(click.ParamType[Any]):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`0.5,0.4` → (0.5, 0.4)."""
        try:
            return tuple(map(float, value.split(",")))
        except ValueError:
            return self.fail(f"{value!r} isn't a number or several with commas between them.", param, ctx)


class Counts(click.ParamType[Any]):
    """Whole numbers from 1 on, with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`1,16` → (1, 16)."""
        counts = value.split(",")
        if not all(count.strip().isdecimal() and int(count) for count in counts):
            self.fail(f"{value!r} isn't a number from 1 on, or several with commas between them.", param, ctx)
        return tuple(map(int, counts))


class Size(click.ParamType[Any]):
    """Channels, height and width of an image."""

    name = "cxhxw"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`3x224x224` → (3, 224, 224)."""
        sizes = value.lower().split("x")
        if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
            self.fail(f"{value!r} isn't CHANNELSxHEIGHTxWIDTH, e.g. 3x224x224.", param, ctx)
        return tuple(map(int, sizes))


def setting(text: str) -> tuple[str, Any]:
    """`a=0.5` → ("a", 0.5), `a=b` → ("a", "b"): JSON where it is any."""
    key, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{key!r} isn't KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


SETTING: dict[str, Any] = {"type": setting, "multiple": True, "metavar": "KEY=VALUE"}


def data_options(command: Command) -> Command:
    """How a data set is read: of `--labels` the command gets what the file says."""
    skip = click.option("--skip-damaged", is_flag=True, help="Leave out images that can't be decoded, and list them.")
    labels = click.option(
        "--labels",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_labels,
        help="JSON {class of the data: class of the model}, or the model's names, one a line.",
    )
    return skip(labels(command))


DISTILLATION = (
    click.option("--epochs", type=click.IntRange(0), help="Distil for so many passes over the data.  [default: 0]"),
    click.option("--steps", type=click.IntRange(1), help="Distil for so many steps at most, or without --epochs."),
    click.option("--batch-size", type=click.IntRange(1), help="Images of a step, over all processes.  [default: 64]"),
    click.option("--lr", type=float, help="Highest learning rate of AdamW.  [default: 0.001]"),
    click.option("--weight-decay", type=float, help="Of tensors with two or more dimensions.  [default: 0.05]"),
    click.option("--ema", type=float, help="Decay of the average of the weights, e.g. 0.999.  [default: 0, none]"),
    click.option("--teacher", "teachers", multiple=True, metavar="NAME", help="Distil from it, or several.  [BASE]"),
    click.option("--alpha", type=float, help="The teacher's share of the loss; labels have the rest.  [default: 0.9]"),
    click.option("--temperature", type=float, help="Of the teacher's term.  [default: 2]"),
    click.option("--divergence", type=click.Choice(("kl", "symmetric")), help="The teacher's term.  [default: kl]"),
    click.option(
        "--augment", help="Of timm's training transform, e.g. hflip=0; of a detector's, close_mosaic=10.", **SETTING
    ),
)


def distillation_options(command: Command) -> Command:
    """How a model is distilled after it was compressed; `distillation` reads them."""
    for option in reversed(DISTILLATION):
        command = option(command)
    return command


def distillation(
    *, epochs: int | None, steps: int | None, teachers: Sequence[str], augment: Sequence[tuple[str, Any]], **fields: Any
) -> dict[str, Any]:
    """What was said of a distillation, as `zoo.verbs.recipes.recipe_for` takes it."""
    said = {key: value for key, value in {"steps": steps, **fields}.items() if value is not None}
    return {
        "epochs": (steps or 0) if epochs is None else epochs,  # an epoch has a step at least
        "teachers": teachers,
        "schedule": {key: value for key, value in said.items() if key not in LOSS},
        "distil": {key: value for key, value in said.items() if key in LOSS},
        "augment": dict(augment),
    }


def _labels(context: click.Context, option: click.Parameter, file: Path | None) -> Any:
    """What a file of labels says, as `zoo.tasks.classification.classes.matched` takes it."""
    if file is None:
        return None
    from zoo.tasks.classification.classes import read_labels

    return read_labels(file)
