"""`zoo save`: weights of a user's own become a repository."""

from pathlib import Path
from typing import Any

import click

from zoo.cli.checks import check_base, check_data
from zoo.cli.options import SETTING, Numbers, Size
from zoo.cli.tables import say
from zoo.declarations import ModelName, validated
from zoo.errors import StructureError, WeightsError


@click.command(
    epilog="\b\nzoo save timm/resnet50 --weights best.pth --labels classes.txt --data ./photographs --out build/mine\n"
    "zoo save my_package.nets:make --weights best.pth --input 1x28x28 --out build/mine\n",
)
@click.argument("base")
@click.option("--weights", type=click.Path(path_type=Path), required=True, help=".pth, .pt, .bin or .safetensors.")
@click.option("--key", help="Where in the file they stand, e.g. state_dict_ema.  [default: the weights, no average]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new repository.")
@click.option("--name", help="Of the model.  [default: the architecture's]")
@click.option("--num-classes", type=click.IntRange(1), help="Of the model.  [default: as the head in the file has]")
@click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Classes in order, one a line or a JSON list.",
)
@click.option("--input", "input", type=Size(), help="Channels, height, width, e.g. 3x224x224.  [default: BASE's]")
@click.option("--mean", type=Numbers(), help="Of the channels, e.g. 0.485,0.456,0.406 or 0.5.  [default: BASE's, or 0]")
@click.option("--std", type=Numbers(), help="Of the channels.  [default: BASE's, or 1]")
@click.option("--license", help="Of your weights, e.g. mit.  [default: none is named]")
@click.option("--data", help="Evaluate it there: digits, a folder, or a Hub id ORG/NAME.")
@click.option("--set", "settings", help="Argument of the architecture or function, e.g. depth=8.", **SETTING)
def save(
    base: str,
    weights: Path,
    key: str | None,
    out: Path,
    num_classes: int | None,
    input: tuple[int, int, int] | None,
    labels: Path | None,
    settings: tuple[tuple[str, Any], ...],
    **about: Any,
) -> None:
    """Save your weights of BASE as a repository, which every other command takes.

    BASE is what the weights are of: an id such as timm/resnet50 or torchvision/resnet18, a model of the list, a
    repository, or a function of your own that returns the module, package.module:function, which is imported from this
    folder and called; its module is saved as a graph, which needs your code no more.

    Nothing in the file of weights is run. Their names may begin with module. or _orig_mod., and they may lie in a
    checkpoint under state_dict, model, state_dict_ema and the like.
    """
    _check(base, weights, about["name"], about["data"])
    from zoo.files import free
    from zoo.structure.describing import seen
    from zoo.tasks.classification.classes import read_names
    from zoo.verbs.own_weights import with_weights
    from zoo.verbs.saving import save

    free(out)  # before anything long
    names = None if labels is None else read_names(labels)
    model = with_weights(base, weights, key=key, num_classes=num_classes, input=input, args=dict(settings))
    if input is None and not seen(model).get("input_size"):
        raise StructureError(f"{base} doesn't say which images it takes: pass --input, e.g. --input 3x224x224")
    say(str(save(model, out, labels=names, input=input, **about)))


def _check(base: str, weights: Path, name: str | None, data: str | None) -> None:
    """Say what is wrong with the command before anything is imported."""
    if ":" not in base:  # a function of the user's own is called first
        check_base(base)
    if not weights.is_file():
        raise WeightsError(f"no file {weights}: expected weights, .pth, .pt, .bin or .safetensors")
    validated(ModelName | None, name, "the model's name", StructureError)
    if data is not None:
        check_data(data)
