"""Exclusion: which layers every method leaves as they are, by name, by pattern or by a word.

`exclude` says what stays, `only` what alone may change; of both together, what `only` names and `exclude` doesn't. A
name is a module's path and stands for all that the module holds; a pattern is one of `fnmatch` over such paths, in
which `*` passes dots. Two words stand for layers of any model: `head`, what classifies, and `stem`, what reads the
image, as `pretrained_cfg` says, else the last and the first layer.

Where channels go, the layers that read them change too, and norms between: `only` names a block, not one layer of it.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from zoo.errors import UnknownName
from zoo.structure.description import config_of

WORDS = {"head": ("classifier", -1), "stem": ("first_conv", 0)}
"""A word → what `pretrained_cfg` calls its layers, and which of all layers it is otherwise."""
REASON, OTHERS = "it is excluded", "it isn't among the only ones"

Patterns = str | Sequence[str]
"""Paths, patterns and words, or one of them."""


def excluded(model: nn.Module, exclude: Patterns, only: Patterns, method: str) -> dict[str, str]:
    """Path of each tensor to be trained that stays as it is → why.

    Args:
        model: whose.
        exclude: what stays.
        only: what alone may change; nothing is said by ().
        method: that is asked, for the message.

    Raises:
        UnknownName: one of them means no layer; the message has those of a similar name.

    >>> layers = nn.Sequential(nn.Linear(2, 2, False), nn.ReLU(), nn.Linear(2, 2, False))
    >>> excluded(layers, "head", (), "prune"), excluded(layers, (), ["2", "stem"], "prune")
    ({'2.weight': 'it is excluded'}, {})
    """
    reasons: dict[int, str] = {}  # a tensor that two layers share stays for either
    if only:
        may = {id(tensor) for tensor in _held(model, only, "only", method)}
        reasons |= {id(tensor): OTHERS for tensor in model.parameters() if id(tensor) not in may}
    reasons |= {id(tensor): REASON for tensor in _held(model, exclude, "exclude", method)}
    named = model.named_parameters()  # of one that is shared, the name that the analysis has too
    return {path: reasons[id(tensor)] for path, tensor in named if id(tensor) in reasons}


def _held(model: nn.Module, patterns: Patterns, what: str, method: str) -> Iterator[nn.Parameter]:
    """The tensors of the layers that patterns mean."""
    modules = dict(model.named_modules(remove_duplicate=False))
    known = [path for path, module in modules.items() if path and next(module.parameters(), None) is not None]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        named = {path for path in known if fnmatchcase(path, str(pattern))} | _worded(model, pattern)
        if not named:
            near = get_close_matches(str(pattern).rstrip(".*"), known, 3, 0.5)
            raise UnknownName(
                f"{method}: {what} names {pattern!r}, but the model has no such layer; "
                f"{'near it are ' + ', '.join(near) + ', and ' if near else ''}{' and '.join(WORDS)} are words for some"
            )
        for path in named:
            yield from modules[path].parameters()


def kept_whole(model: nn.Module, exclude: Patterns, only: Patterns, method: str) -> dict[tuple[str, int], str]:
    """Path and dimension of the tensors of which nothing may be cut → why, as `tried` takes them.

    Raises:
        UnknownName: as in `excluded`.
    """
    whole = excluded(model, exclude, only, method)
    return {(path, dim): reason for path, reason in whole.items() for dim in range(model.get_parameter(path).ndim)}


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
