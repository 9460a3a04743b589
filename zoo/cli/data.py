"""How a data set is read, as options of the commands that open one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--skip-damaged` and `--labels`, whose values `source` takes."""
    skip = click.option("--skip-damaged", is_flag=True, help="Leave out images that can't be decoded, and list them.")
    labels = click.option(
        "--labels",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="JSON {class of the data: class of the model}, or the model's names, one a line.",
    )
    return skip(labels(command))


def source(data: str | None, skip_damaged: bool, labels: Path | None) -> str | None:
    """The data set, with how it is read.

    Raises:
        DataError: the labels can't be read.
    """
    if not skip_damaged and labels is None:
        return data
    if data is None:
        raise click.UsageError("--skip-damaged and --labels are of a data set: name it by --data")
    from zoo.tasks.classes import read_labels
    from zoo.tasks.datasets import Source

    return Source(data, skip_damaged=skip_damaged, labels=read_labels(labels) if labels else None)
