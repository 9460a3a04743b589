"""Base: the dense architecture that a plan edits, built without memory and without initialisation.

A model of some hundred layers spends most of its construction on random numbers that a loader throws away. Here it is
built on the meta device under a mode that skips every initialiser: resnet50d takes 11 ms instead of 23, beit_base 14
instead of 52. Why a mode and not patched functions: a torch function mode belongs to one thread, so there is nothing to
lock and nothing to restore. Why one mode and not two: each call passes through every mode, which costs as much as the
call.
"""

import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import torch
from msgspec import structs
from torch import Tensor, nn
from torch.utils._device import DeviceContext, _device_constructors

from zoo.catalog.entry import Base
from zoo.deadline import deadline
from zoo.declarations import Name, validated
from zoo.errors import FingerprintError, StructureError, UnknownName, in_one_line
from zoo.structure.sources import source_of
from zoo.structure.tensors import check_computed, tensors_of

# What timm's own networks have at most stands behind each.
MAX_PARAMS = 20_000_000_000  # 6.7e9
MAX_TENSORS = 20_000  # 3,108; as many as two seconds build
MAX_CALLS = 200_000  # 33,008; calls of torch while it is built
MAX_REAL = 1_000_000  # 15,960; elements that are computed while it is built, whose values a skeleton needs
MAX_ARGUMENT = 200_000  # the largest head has 115,217 classes
MAX_SIZE = 4_096  # 4,096; of anything but classes: what is made of it may grow with its square
MAX_VALUES = 1_000  # that arguments hold, however deep
INHERITED = ("license", "note")  # in `pretrained_cfg`, of its weights and of whatever is made of them
CLAIMS = (*INHERITED, "tag")  # in `pretrained_cfg`, of its weights
ORIGINS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "notes")
"""Where timm says that the weights lie; it holds for no others."""

_Bounds = msgspec.Meta(ge=-MAX_ARGUMENT, le=MAX_ARGUMENT)
_Sizes = msgspec.Meta(ge=-MAX_SIZE, le=MAX_SIZE)
_Single = msgspec.Meta(ge=-(2.0**127), le=2.0**127, description="a number that single precision holds")
Plain = None | bool | Name | Annotated[int, _Bounds] | Annotated[float, _Single]
Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_ARGUMENT)]
_Value: Any = None | bool | Name | Annotated[int, _Sizes] | Annotated[float, _Bounds]
_Argument: Any = _Value
for _ in range(4):  # lists and dicts within each other
    _Argument = _Value | Annotated[list[_Argument], msgspec.Meta(max_length=MAX_VALUES)] | dict[Name, _Argument]
_Classes = Annotated[int, msgspec.Meta(ge=0, le=MAX_ARGUMENT)]
# As structs they are read in microseconds.
_Arguments = msgspec.defstruct("_Arguments", [("args", dict[Name, _Argument])])
_Head = msgspec.defstruct("_Head", [("num_classes", _Classes | None, None)])
_Heads = msgspec.defstruct("_Heads", [("args", _Head)])

_CONSTRUCTORS: set[Callable[..., Any]] = _device_constructors()
_INITIALISERS: set[Callable[..., Any]] = {
    *(getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")),
    *(
        getattr(Tensor, f"{name}_")
        for name in ("uniform", "normal", "fill", "zero", "copy", "erfinv", "mul", "add", "sub", "div", "clamp")
    ),
}


class Meta(DeviceContext):
    """The meta device, on which nothing is initialised and which bounds how much there may be."""

    def __init__(self) -> None:
        super().__init__(torch.device("meta"))
        self.elements = self.real = self.tensors = self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise _absurd(MAX_CALLS, "operations")
        if func in _INITIALISERS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        elif func in _CONSTRUCTORS:
            if kwargs.get("device") is None:
                kwargs["device"] = self.device
            result = func(*args, **kwargs)
            self.elements += result.numel()
            self.real += 0 if result.is_meta else result.numel()
            self.tensors += 1
            if self.elements > MAX_PARAMS:
                raise _absurd(MAX_PARAMS, "elements")
            if self.real > MAX_REAL:
                raise _absurd(MAX_REAL, "elements with values")
            if self.tensors > MAX_TENSORS:
                raise _absurd(MAX_TENSORS, "tensors")
            return result
        return func(*args, **kwargs)


def _absurd(most: int, what: str) -> StructureError:
    return StructureError(f"the structure asks for more than {most:,} {what}: refused")


def skeleton(base: Base) -> nn.Module:
    """Build the dense model on the meta device: shapes without values.

    Args:
        base: the architecture; classes, channels and image size that `args` leave open are those of its tag.

    Returns:
        The model; every parameter and buffer is a meta tensor.

    Raises:
        UnknownName: the source has no such architecture in the installed version.
        StructureError: an argument isn't one of the architecture's, or asks for something absurd.
    """
    source_of(base)  # importing a library takes longer than a base may, and makes tensors of its own
    with deadline(f"base {base.id[:100]}"), Meta():
        return _create(base)


def initialised(base: Base, seed: int = 0) -> nn.Module:
    """Build the dense model with the random weights of its own initialiser.

    Args:
        base: the architecture.
        seed: of the random weights; the caller's random state is left as it was.

    Returns:
        The model, on the CPU, in train mode.

    Raises:
        UnknownName, StructureError: as for `skeleton`, or it is larger than the memory of this machine.
    """
    dense = skeleton(base)  # says what is absurd before anything is allocated
    check_computed(dense.buffers())
    needed, there = sum(each.nbytes for each in tensors_of(dense).values()), _memory()
    if needed > there:
        raise StructureError(f"base {base.id} takes {needed / 2**30:,.3g} GiB, this machine has {there / 2**30:,.3g}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _create(base)


def tag(base: Base) -> str | None:
    """The tag of a base's id, where its source has weights of that name."""
    named = base.id.partition(".")[2]
    return named if named in source_of(base).tags(base.architecture) else None


def untagged(base: Base) -> Base:
    """The same architecture by an id without a tag; the id itself where only the tag has that structure."""
    plain = structs.replace(base, id=base.id.partition(".")[0])
    return plain if plain == base or fingerprint(skeleton(plain)) == fingerprint(skeleton(base)) else base


def without_claims(config: Mapping[str, Any]) -> dict[str, Any]:
    """`pretrained_cfg` of a structure alone, whatever its weights are."""
    return {key: value for key, value in config.items() if key not in (*CLAIMS, *ORIGINS)}


def check_tag(base: Base) -> None:
    """Check that an id which someone wrote names weights that its source knows.

    Raises:
        UnknownName: it has no such tag.
    """
    source, named = source_of(base), base.id.partition(".")[2]
    if named and tag(base) is None and source.has(base.architecture):
        known = ", ".join(sorted(source.tags(base.architecture))) or "none"
        has = f"{source.package} {source.version} has no weights {named!r} of it"
        raise UnknownName(f"base {base.id}: {has}; known are {known}")


def _create(base: Base) -> nn.Module:
    source, architecture = source_of(base), base.architecture
    args = {key: _argument(base, key, value) for key, value in _checked(base).items()}
    if not source.has(architecture):
        raise UnknownName(
            f"base {base.id}: {source.package} {source.version} has no architecture {architecture!r}; "
            f"pip install -U {source.package}, or list them with {source.listing}"
        )
    with in_one_line(f"base {base.id} can't be built with {reprlib.repr(dict(base.args))}"):
        return source.create(architecture, tag(base), **args)


def _checked(base: Base) -> dict[str, Any]:
    """The arguments as plain data, whose numbers are bounded, and that they aren't too many."""
    where, number = f"base {base.id}:", "num_classes"
    validated(_Heads, {"args": base.args}, where, StructureError)
    others = {key: value for key, value in base.args.items() if key != number}
    plain: dict[str, Any] = validated(_Arguments, {"args": others}, where, StructureError).args
    if (found := _values(plain)) > MAX_VALUES:
        raise StructureError(f"{where} args hold {found:,} values, expected at most {MAX_VALUES:,}")
    return {**plain, **({number: base.args[number]} if number in base.args else {})}


def _values(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(_values, value.values() if isinstance(value, dict) else value))
    return 1


def _memory() -> float:
    """Bytes that this machine has; infinite where the system doesn't say."""
    names: Mapping[str, int] = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= names.keys():
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _argument(base: Base, key: str, value: Any) -> Any:
    """An argument as timm takes it, lists as tuples."""
    if key in source_of(base).refused():
        raise StructureError(f"base {base.id}: argument {key!r} isn't part of an architecture; remove it")
    if isinstance(value, list):
        return tuple(_argument(base, key, item) for item in value)
    return {name: _argument(base, name, item) for name, item in value.items()} if isinstance(value, dict) else value


def fingerprint(model: nn.Module, paths: Iterable[str] = ()) -> dict[str, str]:
    """Describe a base so that another timm's idea of it can be told apart.

    Args:
        model: the dense model, before any edit.
        paths: further module paths whose class matters (those that a plan addresses).

    Returns:
        Module path → class and the shapes of the tensors that the module holds itself, for every module that holds any
        and for `paths`; for example `"conv1": "Conv2d weight=64x3x7x7"`.
    """
    wanted = set(paths)
    return {
        path: _describe(module)
        for path, module in model.named_modules()
        if path in wanted or any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))
    }


def _describe(module: nn.Module) -> str:
    held = {**module._parameters, **{k: v for k, v in module._buffers.items() if k in _persistent(module)}}
    shapes = (f"{name}={'x'.join(map(str, tensor.shape))}" for name, tensor in held.items() if tensor is not None)
    return " ".join((type(module).__name__, *shapes))


def _persistent(module: nn.Module) -> set[str]:
    return set(module._buffers) - module._non_persistent_buffers_set


def check_fingerprint(base: Base, model: nn.Module, saved: Mapping[str, str], version: str) -> None:
    """Compare a base built here with the fingerprint written when the model was saved.

    Args:
        base: its id, for the message.
        model: the dense model, before any edit.
        saved: what `fingerprint` returned then.
        version: its source's, then.

    Raises:
        FingerprintError: naming the first module that differs and both versions of the source.
    """
    built = fingerprint(model, saved)
    if built == saved:
        return
    path = next(path for path in (*saved, *built) if saved.get(path) != built.get(path))
    source = source_of(base)
    raise FingerprintError(
        f"base {base.id}: {path or 'the model itself'} is {built.get(path, 'absent')!r} in {source.package} "
        f"{source.version}, expected {saved.get(path, 'absent')!r} as in {source.package} {version}; "
        f"pip install {source.package}=={version}"
    )
