"""How a data set is read, as options of the commands that open one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--skip-damaged` and `--labels`, whose file `labels_of` reads."""
    skip = click.option("--skip-damaged", is_flag=True, help="Leave out images that can't be decoded, and list them.")
    labels = click.option(
        "--labels",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="JSON {class of the data: class of the model}, or the model's names, one a line.",
    )
    return skip(labels(command))


def labels_of(file: Path | None) -> Any:
    """What `--labels` says, as `zoo.tasks.classification.classes.matched` takes it.

    Raises:
        DataError: the labels can't be read.
    """
    from zoo.tasks.classification.classes import read_labels

    return None if file is None else read_labels(file)
