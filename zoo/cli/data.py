"""How a data set is read, as options of the commands that open one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--skip-damaged` and `--labels`, of which the command gets what the file says."""
    skip = click.option("--skip-damaged", is_flag=True, help="Leave out images that can't be decoded, and list them.")
    labels = click.option(
        "--labels",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_labels,
        help="JSON {class of the data: class of the model}, or the model's names, one a line.",
    )
    return skip(labels(command))


def _labels(context: click.Context, option: click.Parameter, file: Path | None) -> Any:
    """What a file of labels says, as `zoo.tasks.classification.classes.matched` takes it."""
    from zoo.tasks.classification.classes import read_labels

    return None if file is None else read_labels(file)
