"""Task: what a kind of models is for, as a value that whoever loads, compresses, trains or measures one asks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.measurement.curvature import CLASSES, Fisher
from zoo.measurement.divergence import Divergence
from zoo.tasks.loader import Transform

if TYPE_CHECKING:
    from zoo.tasks.columns import Data

Labels: TypeAlias = Mapping[str, Any] | Sequence[str]
"""{class of the data: class of the model}, or the names of the model's classes in order."""


@dataclass(frozen=True)
class Leading:
    """The figure that a task's cards lead with: a share, 0..1, of which more is better.

    Args:
        figure: its key in a report.
        label: its name in a table.
        metric: the Hub's name of it.
        title: what the Hub shows for it.
    """

    figure: str
    label: str
    metric: str
    title: str


@dataclass(frozen=True)
class Meaning:
    """What a model's outputs mean, which come as one tensor (`zoo.measurement.divergence.as_one`).

    Args:
        rows: outputs and targets of a batch → what evaluation keeps of each image, tensors [B, ...] by name; those of
            more than one dimension are filled up by -1 to the largest of all.
        figures: rows of all images → figures by key; `classes`, where there are such, are those of each class in order,
            among them `objects`, how many of it there are.
        divergence: of outputs from those of a reference.
        agreement: of outputs with those of a reference, 0..1 for each image [B].
        fisher: how the divergence bends, for what works by that.
        forgotten: right classes, a reference's answers and the model's [B] → the classes that it forgot; None where
            answers are no classes.
    """

    rows: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
    figures: Callable[[Mapping[str, Tensor]], Mapping[str, Any]]
    divergence: Divergence
    agreement: Callable[[Tensor, Tensor], Tensor]
    fisher: Fisher = CLASSES
    forgotten: Callable[[Tensor, Tensor, Tensor], list[dict[str, Any]]] | None = None


def whole(data: "Data", model: nn.Module, spec: str, labels: Labels | None = None) -> list[int]:
    """No subset of the classes that would be told apart."""
    return []


def unvaried(transform: Transform, left: int) -> Transform:
    """The same transform in every epoch."""
    return transform


@dataclass(frozen=True)
class Task:
    """What models are for; another task is another row of `TASKS`, and one of `zoo.training.STEPS`.

    Args:
        evaluation_transform: `pretrained_cfg` → what makes a tensor [C, H, W] of an image.
        training_transform: `pretrained_cfg`, arguments of augmentation → the same, random.
        views: training transforms of several networks → one that makes a list of what each sees of an image.
        loader: data, transform, batch size and more, as `zoo.tasks.loader.loader` takes them → batches of images
            [B, C, H, W] and targets, one tensor that begins with the batch.
        matched: data, model, name of the data, labels → data whose targets mean what the model's outputs do, or a
            DataError.
        name_: let a model that is trained on data, from `matched`, say what the data does of its targets.
        check_same: that the outputs of two models, as student and teacher, mean the same; the last argument says what
            the other one is.
        predictions: batch → outputs, the evaluation transform, `pretrained_cfg`, images of any sizes, options → what a
            model says of each image, by name.
        meaning: model, and channels, height and width of its images → what its outputs mean.
        leading: the figure that cards lead with.
        unit: what a model is given, in the plural.
        outputs: what it returns, in the plural.
        subset: data, model, name of the data, labels → the model's classes that the data has, where it has some alone.
        of_subset: such classes → what outputs mean then, in place of `meaning`.
        in_epoch: a training transform, and how many epochs are left, the one that begins included → that epoch's.
    """

    evaluation_transform: Callable[[Mapping[str, Any]], Transform]
    training_transform: Callable[[Mapping[str, Any], Mapping[str, Any]], Transform]
    views: Callable[[Sequence[Transform]], Transform]
    loader: Callable[..., DataLoader[Any]]
    matched: Callable[["Data", nn.Module, str, Labels | None], "Data"]
    name_: Callable[[nn.Module, "Data"], None]
    check_same: Callable[[nn.Module, nn.Module, str], None]
    predictions: Callable[..., list[dict[str, Any]]]
    meaning: Callable[[nn.Module, Sequence[int]], Meaning]
    leading: Leading
    unit: str = "images"
    outputs: str = "logits"
    subset: Callable[["Data", nn.Module, str, Labels | None], Sequence[int]] = whole
    of_subset: Callable[[Sequence[int]], Meaning] | None = None
    in_epoch: Callable[[Any, int], Transform] = unvaried
