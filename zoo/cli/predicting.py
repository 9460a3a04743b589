"""`zoo predict`: what a model says of images."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from zoo import atomic
from zoo.cli.options import Range
from zoo.cli.tables import as_json, figure, say, say_json, table
from zoo.errors import DataError

COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "orange", "white")  # one class after the other
WIDTH = 2  # pixels of a line


@click.command(
    epilog="\b\nzoo predict digits_cnn seven.png\n"
    "zoo predict me/mine ./photographs --json\n"
    "zoo predict ./build/detector street.jpg --out drawn --score 0.5\n",
)
@click.argument("name")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--top", type=click.IntRange(1), help="Classes of an image, of a classifier.  [default: 5]")
@click.option("--score", type=Range(0, 1), help="Least score of an object, of a detector.  [default: 0.25]")
@click.option("--iou", type=Range(0, 1), help="By how much objects of a class may overlap.  [default: 0.7]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for images with boxes drawn.")
@click.option("--revision", help="Of a model on the Hub: a commit, tag or branch.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda.")
@as_json
def predict(
    name: str,
    images: tuple[Path, ...],
    out: Path | None,
    revision: str | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Tell what is in images, by the model NAME.

    NAME is one of the list, ORG/NAME on the Hub, a repository's folder, or a timm id such as timm/resnet18.a1_in1k.
    IMAGE is a file, or a folder of them. A classifier gives the most likely classes, a detector objects, whose boxes
    are x1, y1, x2, y2 in pixels of the upright image; --out draws them into copies.
    """
    files = list(_files(images))
    copies = _copies(files, out)
    from zoo.structure.description import config_of
    from zoo.verbs.loading import load
    from zoo.verbs.predicting import predict

    model = load(name, revision=revision, device=device)
    found = predict(model, files, **options)
    if not as_json and any("features" in each for each in found):
        raise DataError(f"{name} gives features, which have no names: --json prints them")
    if copies and not all("boxes" in each for each in found):
        raise DataError(f"{name} gives no boxes, which could be drawn: leave --out out")
    said = [_told(*each, config_of(model)) for each in zip(files, found, strict=True)]
    for copy, each in zip(copies, said, strict=bool(copies)):
        _draw(each, copy)
    if as_json:
        say_json(said)
        return
    rows = [row for each in said for row in _rows(each)]
    table(["image", "class", "score", *("x1", "y1", "x2", "y2")[: len(rows[0]) - 3]], rows)
    for copy in copies:
        say(str(copy))


def _files(images: Sequence[Path]) -> Iterator[Path]:
    """The files that are named, and those of folders that are named."""
    from zoo.tasks.folders import EXTENSIONS

    for path in images:
        if not path.exists():
            raise DataError(f"no file {path}: expected an image, or a folder of images")
        if not path.is_dir():
            yield path
            continue
        held = sorted(each for each in path.iterdir() if each.suffix.lower() in EXTENSIONS and each.is_file())
        if not held:
            raise DataError(f"no images in {path}: expected files that end in {', '.join(sorted(EXTENSIONS))}")
        yield from held


def _copies(files: Sequence[Path], out: Path | None) -> list[Path]:
    """Where the images with boxes shall lie."""
    if out is None:
        return []
    copies, originals = [out / f"{file.stem}.png" for file in files], {file.resolve() for file in files}
    for copy, times in Counter(copies).items():
        if copy.resolve() in originals:
            raise DataError(f"{copy} is one of the images: choose another folder for --out")
        if times > 1:
            raise DataError(f"{times} images would be drawn to {copy}: predict those of one name apart")
    return copies


def _told(file: Path, found: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What is found in an image, as plain data; boxes with the names of their classes."""
    from torch.utils import _pytree as pytree

    from zoo.tasks.classification.predictions import class_labels

    plain = {"image": str(file), **pytree.tree_map(lambda each: getattr(each, "tolist", lambda: each)(), dict(found))}
    if "boxes" in found:
        names = class_labels(config, config["num_classes"])
        plain["names"] = [names[label] for label in plain["labels"]]
    return plain


def _rows(told: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table: image, class, score and box."""
    boxes = [[f"{side:.1f}" for side in box] for box in told.get("boxes", [])]
    if "boxes" in told and not boxes:
        return [[told["image"], "nothing", *["-"] * 5]]
    described = zip(told["names"], told["scores"], boxes or [[]] * len(told["names"]), strict=True)
    return [[told["image"], name, figure(score), *box] for name, score, box in described]


def _draw(told: Mapping[str, Any], copy: Path) -> None:
    """Write a copy of an image with boxes and the names of their classes."""
    import torch
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import draw_bounding_boxes

    from zoo.tasks.pixels import decode

    image = pil_to_tensor(decode(told["image"]))
    if told["boxes"]:
        words = [f"{name} {score:.2f}" for name, score in zip(told["names"], told["scores"], strict=True)]
        colours = [COLOURS[label % len(COLOURS)] for label in told["labels"]]
        image = draw_bounding_boxes(image, torch.tensor(told["boxes"]), words, colours, width=WIDTH)
    with atomic.writing(copy) as file:
        to_pil_image(image).save(file, "PNG")
