"""State dicts: a user's weights, whatever wrote them and whatever they were wrapped in, fitted to a model.

A file is torch.save's (`.pth`, `.pt`, `.bin`), which our own unpickler reads, or safetensors. In it the tensors may lie
under a key beside an optimizer, and their names may begin with what wrapped the model that was trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoo.errors import WeightsError
from zoo.hub.foreign.unpickle import load_pickle
from zoo.printable import logger
from zoo.structure.tensors import assign_, computable, tensors_of

log = logger(__name__)

# The first that there is, is taken: the weights that were trained before their averages.
KEYS = ("state_dict", "model", "model_state_dict", "module", "net", "network", "weights")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "_forward_module.")
BESIDE = ("n_averaged",)  # what wrappers add to a state dict, which is no weight
DEPTH = 3  # of keys within keys

KINDS = (
    "bool",
    "bytes",
    "dict",
    "float",
    "int",
    "list",
    "long",
    "str",
    "tuple",
    "unicode",
)  # what a defaultdict makes

# What training leaves beside the weights: read as inert records, or named and left alone.
NAMES = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "collections.Counter",
        "collections.defaultdict",
        "datetime.datetime",
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "torch.Size",
        "torch.device",
        "types.SimpleNamespace",
        *(f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in KINDS),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"torch.{dtype}" for dtype in ("float32", "float16", "bfloat16", "float64")),
    }
)


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, and where they stood.

    Args:
        values: name → tensor.
        where: their file, and the key in it, for messages.
    """

    values: Mapping[str, Tensor]
    where: str


def read_state_dict(path: Path, key: str | None = None) -> StateDict:
    """Read the weights in a file; nothing in it is run.

    Args:
        path: of torch.save, in either of its formats, or of safetensors.
        key: where in it they stand, such as `state_dict_ema`, with dots between keys within keys; None takes the only
            ones, or the first of `KEYS`, and says so where there are others.

    Returns:
        The state dict.

    Raises:
        WeightsError: the file is missing, damaged or refused, has no weights there, or several under unknown keys.
    """
    if not path.is_file():
        raise WeightsError(f"no file {path}: expected weights, .pth, .pt, .bin or .safetensors")
    if _is_safetensors(path):
        held: Any = _safetensors(path)
    else:
        try:
            held = load_pickle(path, NAMES)
        except WeightsError as error:
            remedy = "torch.save(model.state_dict(), FILE) writes weights alone"
            raise WeightsError(f"{str(error).removesuffix(_ADVICE)}: {remedy}") from None
    found = {".".join(keys): values for keys, values in _state_dicts(held)}
    if key is not None:
        if key not in found:
            raise WeightsError(f"{path} has no weights under {key!r}, there are {_listed(found) or 'none'}")
        return StateDict(found[key], f"{path} ({key})")
    if not found:
        raise WeightsError(f"{path} has no weights: expected a state dict, name → tensor, or one under {KEYS[0]!r}")
    ranks = {name: _rank(name) for name in found}
    best = [name for name in found if ranks[name] == min(ranks.values())]
    if len(best) > 1:
        raise WeightsError(f"{path} has several state dicts, say which with --key: {_listed(found)}")
    taken = best[0]
    if others := [name for name in found if name != taken and taken]:
        log.info("%s: the weights under %s are taken; --key takes others: %s", path, taken, _listed(others))
    return StateDict(found[taken], f"{path} ({taken})" if taken else str(path))


def _rank(name: str) -> int:
    order = ("", *KEYS, *AVERAGES)
    first = name.partition(".")[0]
    return order.index(first) if first in order else len(order)


_ADVICE = ": fetch it again; if that doesn't help, don't trust it"


def _listed(names: Any) -> str:
    return ", ".join([name or "(the whole file)" for name in names][:8])


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}): write it again") from None


def _state_dicts(held: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict of names to tensors, and the keys that it lies under."""
    if not isinstance(held, dict) or len(keys) > DEPTH or not all(type(key) is str for key in held):
        return
    tensors = {name: value.detach() for name, value in held.items() if isinstance(value, Tensor)}
    inner = {name: value for name, value in held.items() if isinstance(value, dict) and value}
    if tensors and not inner:
        yield keys, tensors
    for name, value in inner.items():
        yield from _state_dicts(value, (*keys, name))


def unwrapped(values: Mapping[str, Tensor], own: Sequence[str]) -> dict[str, Tensor]:
    """A state dict without the prefixes that all of its names begin with and the model's don't.

    >>> unwrapped({"module._orig_mod.fc.bias": 1, "n_averaged": 2}, ["fc.bias"])
    {'fc.bias': 1}
    """
    values = dict(values)
    while True:
        kept = [name for name in values if name not in BESIDE]
        prefix = next((each for each in WRAPPERS if kept and all(name.startswith(each) for name in kept)), None)
        if prefix is None or any(name.startswith(prefix) for name in own):
            return values
        values = {name.removeprefix(prefix): values[name] for name in kept}


def fill_(model: nn.Module, found: StateDict) -> nn.Module:
    """Put a state dict's tensors into a model.

    Counters of batches of batch norms may be missing, as in files from before torch 0.4.1.

    Args:
        model: on any device; its tensors are replaced.
        found: what `read_state_dict` gave.

    Returns:
        The same model, on the CPU.

    Raises:
        WeightsError: tensors are missing, too many or misshapen: the first of each, and how many.
    """
    expected, computed = tensors_of(model), computable(model)
    values = unwrapped(found.values, [*expected])
    aliases = model.state_dict(keep_vars=True)  # a tensor that two modules share stands there twice
    same = {id(held): name for name, held in expected.items()}
    values = {same.get(id(aliases.get(name)), name): value for name, value in values.items()}
    counters = [name for name in expected if name.endswith("num_batches_tracked") and name not in values]
    values |= {name: torch.zeros((), dtype=torch.long) for name in counters}
    own = {name: held for name, held in expected.items() if name not in aliases}  # which no state dict holds
    needed = {name: held for name, held in expected.items() if name not in own}
    check_same(values, needed, {*own, *computed}, found.where)
    kept = {name: held for name, held in own.items() if name not in computed}
    return assign_(model, {**kept, **values}, found.where)


def check_same(values: Mapping[str, Tensor], needed: Mapping[str, Tensor], also: set[str], where: str) -> None:
    """Compare a state dict with the tensors that a model has.

    Args:
        values: the state dict.
        needed: the model's.
        also: names that it may hold beside them.
        where: its file, for the message.

    Raises:
        WeightsError: what differs, the first of each kind and how many.
    """
    shapes = {name: tuple(held.shape) for name, held in values.items()}
    expected = {name: tuple(held.shape) for name, held in needed.items()}
    both = [name for name in expected if shapes.get(name, expected[name]) != expected[name]]
    differ = {
        "of another shape": [f"{name} is {shapes[name]}, expected {expected[name]}" for name in both],
        "missing": [f"{name} {shape}" for name, shape in expected.items() if name not in shapes],
        "not the model's": [f"{name} {shape}" for name, shape in shapes.items() if name not in {*expected, *also}],
    }
    said = [f"{what}: {each[0]}{_more(each)}" for what, each in differ.items() if each]
    if said:
        raise WeightsError(f"{where} doesn't fit the model; {'; '.join(said)}")


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1:,} more" if len(names) > 1 else ""
