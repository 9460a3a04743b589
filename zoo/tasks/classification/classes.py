"""Classes by name: the labels of a data set become those of a model, or it is said why they can't.

Names agree apart from case, and from spaces, hyphens and underscores; numbers agree as numbers; of a list of synonyms
(`tench, Tinca tinca`) one is enough. ImageNet's classes are also known by their WordNet ids (`n01440764`).

Source: https://image-net.org, as timm lists it.
"""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from zoo.errors import DataError, require
from zoo.printable import logger
from zoo.structure.description import config_of, configure_
from zoo.structure.sources import timm
from zoo.tasks.columns import class_kind, class_numbers, has_boxes, relabelled
from zoo.tasks.folders import by_number
from zoo.tasks.task import Labels

if TYPE_CHECKING:
    from zoo.tasks.columns import Data

log = logger(__name__)

SHOWN = 5  # names in a message


def num_classes(data: "Data") -> int | None:
    """The number of classes, or None where the data set doesn't say."""
    return getattr(class_kind(data), "num_classes", None)


def class_names(data: "Data") -> list[str]:
    """The names of a data set's classes, or their numbers where it has no names; none where it doesn't say."""
    return _names(data) or _digits(num_classes(data))


def label_names(model: nn.Module) -> list[str] | None:
    """The names of a model's classes, as timm keeps them in `pretrained_cfg`."""
    names = config_of(model).get("label_names")
    return [str(name) for name in names] if isinstance(names, list | tuple) and names else None


def name_classes_(model: nn.Module, data: "Data") -> None:
    """Name a model's classes after those of the data that it is trained on, where it has no names.

    Args:
        model: with `pretrained_cfg`.
        data: from `matched`.
    """
    names = _names(data)
    if names and label_names(model) is None and len(names) == getattr(model, "num_classes", None):
        configure_(model, {**config_of(model), "label_names": list(names)})


def read_labels(path: Path) -> Labels:
    """Read a file of `--labels`.

    Args:
        path: a JSON object {class of the data: class of the model}, or the names of the model's classes in order, as a
            JSON list or one a line.

    Raises:
        DataError: it is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
        labels = json.loads(text) if text.lstrip().startswith(("{", "[")) else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no labels could be read: {error}") from None
    if isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels):
        return [name.strip() for name in labels]
    if isinstance(labels, dict) and labels and all(type(name) in (str, int) for name in labels.values()):
        return labels
    raise DataError(f"{path}: expected a list of names, one a line or as JSON, or a JSON object of names")


def read_names(path: Path) -> list[str]:
    """Read a file of the names of a model's classes in order, a JSON list or one a line.

    Raises:
        DataError: it is none.
    """
    labels = read_labels(path)
    if isinstance(labels, Mapping):
        raise DataError(f"{path}: expected the names of the model's classes in order, found an object of names")
    return list(labels)


def matched(data: "Data", model: nn.Module, spec: str, labels: Labels | None = None) -> "Data":
    """Data with a label an image, the number of one of a model's classes; arguments and errors of `of_classes`."""
    if has_boxes(data):
        raise DataError(f"{spec} has boxes, the model gives a class an image: use other data")
    return of_classes(data, model, spec, labels)


def of_classes(data: "Data", model: nn.Module, spec: str, labels: Labels | None = None) -> "Data":
    """Data whose labels, of images or objects, are the numbers of a model's classes.

    Args:
        data: what `dataset` returns.
        model: with `num_classes`, and `label_names` in its `pretrained_cfg` where it knows them.
        spec: of the data, for messages.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.

    Returns:
        The same rows with other labels; the data itself where they were right.

    Raises:
        DataError: the data has classes that the model hasn't, so an accuracy would mean nothing.
    """
    numbers, own = _numbered(data, model, spec, labels)
    count = getattr(model, "num_classes", None)
    if numbers is None:
        return _by_order(data, count, own, spec)
    if count is not None and len(numbers) < count:
        log.info("%s has %d of the model's %d classes", spec, len(numbers), count)
    kind = require("datasets", "eval").ClassLabel
    if numbers == list(range(count or len(numbers))):
        return data
    names = {"names": own} if own and len(set(own)) == len(own) else {"num_classes": count}
    return relabelled(data, dict(enumerate(numbers)), kind(**names))


def subset(data: "Data", model: nn.Module, spec: str, labels: Labels | None = None) -> list[int]:
    """The model's classes that the data has, where it has some of them alone; arguments and errors of `of_classes`."""
    numbers, _ = _numbered(data, model, spec, labels)
    some = sorted(set(numbers or ()))
    return some if 1 < len(some) < (getattr(model, "num_classes", None) or 0) else []


def _numbered(
    data: "Data", model: nn.Module, spec: str, labels: Labels | None
) -> tuple[list[int] | None, list[str] | None]:
    """The model's number of each of the data's classes, None where they come in its order; and its classes' names."""
    _check_labels(data, spec)
    count, own, theirs = getattr(model, "num_classes", None), label_names(model), _names(data)
    if not isinstance(labels, Mapping | None):
        own, labels = list(labels), None
        if len(own) != count:
            raise DataError(f"labels: expected the names of the model's {count} classes, found {len(own)}")
    if labels:
        known, classes = theirs or _digits(num_classes(data) or count), own or _digits(count)
        if unknown := [name for name in labels if name not in known]:
            raise DataError(f"labels: {spec} has no class {_some(unknown)}; its classes are {_some(known)}")
        theirs = [_named(labels.get(name, name), classes) for name in known]
        numbers = _by_name(theirs, classes, spec)
    elif theirs is None or (_numbers(theirs) and not set(theirs) <= set(map(_key, own or ()))):
        return None, own
    elif own is None:
        numbers = _of_nameless(theirs, count, spec)
    else:
        numbers = _by_name(theirs, own, spec)
    if own is None and count == len(theirs):
        own = [theirs[old] for old, _ in sorted(enumerate(numbers), key=lambda pair: pair[1])]
    return numbers, own


def check_same_classes(model: nn.Module, other: nn.Module, what: str) -> None:
    """Check that two models, as student and teacher, mean the same by each class.

    Raises:
        DataError: their numbers or names differ.
    """
    counts = [getattr(each, "num_classes", None) for each in (model, other)]
    if None not in counts and counts[0] != counts[1]:
        raise DataError(f"{what} has {counts[1]} classes, the model {counts[0]}: choose another")
    mine, its = label_names(model), label_names(other)
    if mine and its and _by_name(its, mine, what) != list(range(len(mine))):
        raise DataError(f"{what} has the model's classes in another order: {_some(its)}, expected {_some(mine)}")


def _names(data: "Data") -> list[str] | None:
    """The names of a data set's classes, which may be mere numbers."""
    return getattr(class_kind(data), "names", None) or None


def _check_labels(data: "Data", spec: str) -> None:
    labels, classes = class_numbers(data) if hasattr(data, "__len__") else None, num_classes(data)
    if labels is not None and len(labels) and classes is not None and labels.max() >= classes:
        raise DataError(f"{spec} has labels up to {labels.max()}, but {classes} classes: use other data")


def _by_order(data: "Data", count: int | None, own: list[str] | None, spec: str) -> "Data":
    classes = num_classes(data)
    if None not in (classes, count) and classes != count:
        raise DataError(
            f"{spec} has {classes} classes, the model {count}: choose other data, or load with num_classes, or map "
            "them by --labels FILE"
        )
    if classes is None and count is not None and hasattr(data, "__len__"):
        labels = class_numbers(data)
        if labels is not None and len(labels) and labels.max() >= count:
            raise DataError(f"{spec} has labels up to {labels.max()}, the model {count} classes: choose other data")
        if labels is None and has_boxes(data):  # they are held against the classes as they are read
            return relabelled(data, dict(enumerate(range(count))), class_kind(data))
    if own and not _numbers(own):
        log.info("%s has numbers for classes: 0 is taken for %s, 1 for %s, and so on", spec, own[0], own[1 % len(own)])
    return data


def _of_nameless(theirs: list[str], count: int | None, spec: str) -> list[int]:
    """Numbers of names for a model that has none: ImageNet's, or in the names' order."""
    if count == 1000:
        numbers = [_found(name, _tables(_imagenet())) for name in theirs]
        if None not in numbers and len(set(numbers)) == len(numbers):
            log.info("the model has 1000 classes and no names for them: taken for ImageNet's, as %s names them", spec)
            return [number for number in numbers if number is not None]
    if count is not None and count != len(theirs):
        raise DataError(
            f"{spec} has {len(theirs)} classes, the model {count} without names: choose other data, or load with "
            "num_classes, or name the model's classes by --labels FILE"
        )
    order = sorted(theirs, key=by_number) if all(name.isdecimal() for name in theirs) else theirs
    log.info("the model has no names for its classes: taken in the order of %s: %s", spec, _some(order))
    return [order.index(name) for name in theirs]


def _by_name(theirs: list[str], own: list[str], spec: str) -> list[int]:
    """The number of each name among the model's."""
    if [_key(name) for name in theirs] == [_key(name) for name in own]:
        return list(range(len(own)))
    known = tuple(map(_keys, own))
    if len(own) == 1000 and sum(_found(name, _tables(_imagenet())) == number for number, name in enumerate(own)) > 900:
        tables = _tables(known, _imagenet())
    else:
        tables = _tables(known)
    numbers = [_found(name, tables) for name in theirs]
    missing = [name for name, number in zip(theirs, numbers, strict=True) if number is None]
    meant = {number: name for name, number in zip(theirs, numbers, strict=True)}
    twice = [name for name, number in zip(theirs, numbers, strict=True) if meant[number] != name]
    if missing or twice:
        lacking = [name for number, name in enumerate(own) if number not in numbers]
        raise DataError(
            f"{spec} has classes that the model hasn't, or more than once: {_some(missing or twice)}; of the model's "
            f"there remain {_some(lacking)}: choose other data, or map them by --labels FILE"
        )
    return [number for number in numbers if number is not None]


# What a class is known by, surest first: name and WordNet id as written, first synonym as written, name in any case,
# first synonym in any case, all synonyms.
Keys = tuple[tuple[str, ...], ...]
Tables = list[dict[str, set[int]]]


def _keys(name: str) -> Keys:
    parts = [part.strip() for part in name.split(",")]
    first, *others = map(_key, parts)
    return (name, *re.findall(r"\bn\d{8}(?!\d)", name)), (parts[0],), (_key(name),), (first,), (first, *others)


def _found(name: str, tables: Tables) -> int | None:
    """The one class that a name means."""
    for key in itertools.chain.from_iterable(_keys(name)):
        for table in tables:
            if len(numbers := table.get(key, set())) == 1:
                return next(iter(numbers))
    return None


@cache
def _tables(*sources: tuple[Keys, ...]) -> Tables:
    """For each kind of key, the classes that it may mean."""
    tables: Tables = [defaultdict(set) for _ in _keys("")]
    for number, known in itertools.chain.from_iterable(map(enumerate, sources)):
        for table, keys in zip(tables, known, strict=True):
            for key in keys:
                table[key].add(number)
    return [dict(table) for table in tables]


@cache
def _imagenet() -> tuple[Keys, ...]:
    info = timm().data.ImageNetInfo()
    described = map(_keys, info.label_descriptions())
    return tuple(
        ((*names, wnid), *others) for wnid, (names, *others) in zip(info.label_names(), described, strict=True)
    )


def _key(name: str) -> str:
    plain = re.sub(r"[\s_-]+", " ", name.strip()).casefold()
    return str(int(plain)) if plain.isdecimal() else plain


def _numbers(names: Sequence[str]) -> bool:
    return list(names) == _digits(len(names))


def _digits(count: int | None) -> list[str]:
    return [str(number) for number in range(count or 0)]


def _named(value: str | int, classes: Sequence[str]) -> str:
    """The name of a class of the model that is told by name or number."""
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else str(value)


def _some(names: Sequence[str]) -> str:
    shown = [repr(name[:60]) for name in names[:SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
