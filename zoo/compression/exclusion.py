"""Exclusion: which layers every method leaves as they are, by name, by pattern or by a word.

A name is a module's path and stands for all that the module holds; a pattern is one of `fnmatch` over such paths, in
which `*` passes dots. Two words stand for layers of any model: `head`, what classifies, and `stem`, what reads the
image, as `pretrained_cfg` says, else the last and the first layer.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from zoo.errors import UnknownName
from zoo.structure.description import config_of

WORDS = {"head": ("classifier", -1), "stem": ("first_conv", 0)}
"""A word → what `pretrained_cfg` calls its layers, and which of all layers it is otherwise."""
REASON = "it is excluded"


def excluded(model: nn.Module, exclude: str | Sequence[str], method: str) -> set[str]:
    """Paths of the modules that stay as they are.

    Args:
        model: whose modules.
        exclude: paths, patterns and words.
        method: that is asked, for the message.

    Raises:
        UnknownName: one of them means no module; the message has those of a similar name.

    >>> sorted(excluded(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["head", "1*"], "prune"))
    ['1', '2']
    """
    known = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    paths: set[str] = set()
    for pattern in [exclude] if isinstance(exclude, str) else exclude:
        named = {path for path in known if fnmatchcase(path, str(pattern))} | _worded(model, pattern)
        if not named:
            near = get_close_matches(str(pattern).rstrip(".*"), known, 3, 0.5)
            raise UnknownName(
                f"{method}: exclude names {pattern!r}, but the model has no such layer; "
                f"{'near it are ' + ', '.join(near) + ', and ' if near else ''}{' and '.join(WORDS)} are words for some"
            )
        paths |= {path for path in known if any(path == name or path.startswith(f"{name}.") for name in named)}
    return paths


def kept_whole(model: nn.Module, exclude: str | Sequence[str], method: str) -> dict[tuple[str, int], str]:
    """Path and dimension of the tensors of which nothing may be cut → why, as `tried` takes them.

    Raises:
        UnknownName: as in `excluded`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    theirs = {id(tensor) for path in excluded(model, exclude, method) for tensor in modules[path].parameters()}
    return {
        (path, dim): REASON
        for path, tensor in model.named_parameters()  # of one that is shared, the name that the analysis has too
        if id(tensor) in theirs
        for dim in range(tensor.ndim)
    }


def _worded(model: nn.Module, word: str) -> set[str]:
    if word not in WORDS:
        return set()
    name, place = WORDS[word]
    config = config_of(model)
    said = config.get(name) or ()
    paths = {said} if isinstance(said, str) else set(said)
    layers = [path for path, module in model.named_modules() if getattr(module, "weight", None) is not None]
    layers = [path for path in layers if model.get_parameter(f"{path}.weight").ndim > 1]
    return {path for path in paths if path in dict(model.named_modules())} or set(layers[place:][:1])
