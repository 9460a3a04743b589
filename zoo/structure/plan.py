"""Plan: a compressed structure as a list of edits over a base.

Edits state intent (this layer has 12 outputs, this attention 2 heads), never the attributes of a class: what those must
become is worked out when the plan is applied, from tensor shapes and from the table in `structure.blocks`. A plan is a
value, reads and writes JSON, and composes: what one edit leaves, the next may address.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from zoo.errors import StructureError
from zoo.structure import blocks
from zoo.structure.layers import REPLACEMENTS, Identity, Zero

Spatial = Literal["first", "last"]
Remnant = Literal["identity", "zero"]


@dataclass(frozen=True)
class Width:
    """Channels that a layer keeps.

    Args:
        outputs: channels out; for a norm or a per-channel scale its channels.
        inputs: channels in.
        groups: of a convolution, where it isn't the base's (a depthwise one follows `inputs` by itself).
    """

    outputs: int | None = None
    inputs: int | None = None
    groups: int | None = None


@dataclass(frozen=True)
class Heads:
    """Heads that an attention module keeps, and their width."""

    num_heads: int
    head_dim: int


@dataclass(frozen=True)
class Rank:
    """How a layer is split in two.

    Args:
        rank: channels between the factors.
        spatial: which factor of a convolution keeps the kernel, stride, padding and dilation.
    """

    rank: int
    spatial: Spatial = "first"


@dataclass(frozen=True)
class Narrow:
    """Fewer channels: `widths` by path of a layer, `heads` by path of an attention module."""

    edit: ClassVar[str] = "narrow"
    widths: Mapping[str, Width] = field(default_factory=dict)
    heads: Mapping[str, Heads] = field(default_factory=dict)

    def apply_(self, model: nn.Module) -> None:
        """Keep the first channels of each."""
        for path, width in self.widths.items():
            _narrow_layer_(_module(model, self, path), width, path)
        for path, heads in self.heads.items():
            _narrow_heads_(_module(model, self, path), heads, path)


@dataclass(frozen=True)
class Factor:
    """W (m × n) becomes B·A with A (rank × n) and B (m × rank): two layers in sequence, the bias in the second."""

    edit: ClassVar[str] = "factor"
    layers: Mapping[str, Rank] = field(default_factory=dict)

    def apply_(self, model: nn.Module) -> None:
        """Replace each layer by its two factors."""
        for path, rank in self.layers.items():
            _replace_(model, path, _factors(_module(model, self, path), rank, path))


@dataclass(frozen=True)
class Mask:
    """Stored zeros stay zero while training; the structure is the base's."""

    edit: ClassVar[str] = "mask"
    paths: tuple[str, ...] = ()

    def apply_(self, model: nn.Module) -> None:
        """Check that each path has a weight."""
        for path in self.paths:
            if not isinstance(getattr(_module(model, self, path), "weight", None), Tensor):
                raise StructureError(f"mask: {path} has no weight to mask")


@dataclass(frozen=True)
class Drop:
    """A block becomes the identity, or a branch beside a shortcut becomes zero."""

    edit: ClassVar[str] = "drop"
    paths: Mapping[str, Remnant] = field(default_factory=dict)

    def apply_(self, model: nn.Module) -> None:
        """Replace each module."""
        for path, remnant in self.paths.items():
            _module(model, self, path)
            if remnant not in get_args(Remnant):
                raise StructureError(f"drop: {path} becomes {remnant!r}, expected identity or zero")
            _replace_(model, path, Identity() if remnant == "identity" else Zero())


@dataclass(frozen=True)
class Swap:
    """A module takes an allow-listed class (`structure.layers.REPLACEMENTS`) where timm's own hard-codes a width."""

    edit: ClassVar[str] = "swap"
    classes: Mapping[str, str] = field(default_factory=dict)

    def apply_(self, model: nn.Module) -> None:
        """Change each class; parameters and attributes stay."""
        for path, name in self.classes.items():
            module = _module(model, self, path)
            replacement = REPLACEMENTS.get(name) if isinstance(name, str) else None
            if replacement is None:
                raise StructureError(f"swap: {path} names unknown class {name!r}, known are {', '.join(REPLACEMENTS)}")
            if not issubclass(replacement, type(module)):
                raise StructureError(f"swap: {path} is a {blocks.class_name(module)}, which {name} doesn't replace")
            module.__class__ = replacement


Edit = Narrow | Factor | Mask | Drop | Swap
EDITS: dict[str, type[Edit]] = {kind.edit: kind for kind in get_args(Edit)}


@dataclass(frozen=True)
class Plan:
    """Edits, applied in order."""

    edits: tuple[Edit, ...] = ()

    def __add__(self, other: Self) -> "Plan":
        return Plan(self.edits + other.edits)

    def paths(self) -> list[str]:
        """Every module path that an edit addresses, each once."""
        return list(dict.fromkeys(path for edit in self.edits for item in _values(edit) for path in item))

    def to_json(self) -> list[dict[str, Any]]:
        """The plan as JSON: one object an edit, None left out."""
        return [{"edit": edit.edit, **_without_none(asdict(edit))} for edit in self.edits]

    @classmethod
    def from_json(cls, data: Any) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            StructureError: an unknown edit, an unknown or missing key, or a value of another type.
        """
        if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
            raise StructureError("plan: expected a list of edits, each an object")
        return cls(tuple(_edit(item, f"plan[{i}]") for i, item in enumerate(data)))


def apply_(model: nn.Module, plan: Plan) -> nn.Module:
    """Apply a plan to its base in place.

    Args:
        model: the base, on the meta device (as `load` does it) or with values, of which the first channels are kept.
        plan: the edits.

    Returns:
        The same model.

    Raises:
        StructureError: an edit addresses a module that isn't there, of a class that can't be edited, or asks for more
            than the base has.
    """
    for edit in plan.edits:
        edit.apply_(model)
    return model


def _module(model: nn.Module, edit: Edit, path: str) -> nn.Module:
    try:
        if not path:
            raise AttributeError
        return model.get_submodule(path)
    except AttributeError:
        raise StructureError(f"{edit.edit}: the base has no module {path!r}") from None


def _replace_(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    module.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), name, module)


def _count(asked: int | None, available: int, what: str) -> int:
    if asked is None:
        return available
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= available:
        raise StructureError(f"{what} is {asked}, expected 1 to {available}")
    return asked


def _narrow_layer_(module: nn.Module, width: Width, path: str) -> None:
    held = {n: t for n, t in (*module._parameters.items(), *module._buffers.items()) if t is not None and t.ndim > 0}
    if not held or isinstance(module, nn.modules.conv._ConvTransposeNd):
        raise StructureError(f"narrow: {path} is a {type(module).__name__}, which has no width that can be narrowed")
    shape = (held.get("weight") if "weight" in held else next(iter(held.values()))).shape  # type: ignore[union-attr]
    outputs = _count(width.outputs, shape[0], f"narrow: {path}.outputs")
    fan_in = shape[1] if len(shape) > 1 else 1
    if isinstance(module, nn.modules.conv._ConvNd):
        inputs = _count(width.inputs, module.in_channels, f"narrow: {path}.inputs")
        depthwise = module.groups == module.in_channels and module.groups > 1
        follows = inputs if depthwise else None
        asked = follows if width.groups is None else width.groups
        groups = _count(asked, module.groups, f"narrow: {path}.groups")
        if inputs % groups or outputs % groups or inputs // groups > fan_in:
            raise StructureError(f"narrow: {path} has {inputs} inputs and {outputs} outputs for {groups} groups")
        module.groups, fan_in = groups, inputs // groups
    else:
        fan_in = _count(width.inputs, fan_in, f"narrow: {path}.inputs")
    for name, tensor in held.items():
        kept = {0: outputs} if tensor.shape[0] == shape[0] else {}
        if name == "weight" and tensor.ndim > 1:
            kept[1] = fan_in
        _select_(module, name, {dim: torch.arange(n, device="cpu") for dim, n in kept.items()})
    blocks.refresh_(module)


def _narrow_heads_(module: nn.Module, heads: Heads, path: str) -> None:
    layout = blocks.layout(module, path)
    before = layout.sizes(module)
    h = _count(heads.num_heads, before[0], f"narrow: {path}.num_heads")
    d = _count(heads.head_dim, before[1], f"narrow: {path}.head_dim")
    for name, patterns in layout.tensors.items():
        owner_path, _, tensor = name.rpartition(".")
        owner = getattr(module, owner_path, None) if owner_path else module
        if not isinstance(owner, nn.Module) or getattr(owner, tensor, None) is None:
            continue
        index = {
            dim: layout.positions(pattern, before)[:, : h if "h" in pattern else 1, : d if "d" in pattern else 1]
            for dim, pattern in enumerate(patterns)
            if pattern != "."
        }
        _select_(owner, tensor, {dim: positions.flatten() for dim, positions in index.items()})
        blocks.refresh_(owner)
    for attribute, pattern in layout.attributes.items():
        setattr(module, attribute, (h if "h" in pattern else 1) * (d if "d" in pattern else 1))
    if layout.scale:
        module.scale = d**-0.5


def _select_(module: nn.Module, name: str, index: Mapping[int, Tensor]) -> None:
    held: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    old = held[name]
    assert old is not None
    if all(len(positions) == old.shape[dim] for dim, positions in index.items()):
        return
    shape = [len(index[dim]) if dim in index else size for dim, size in enumerate(old.shape)]
    new = old.detach().new_empty(shape) if old.is_meta else select(old.detach(), index)
    held[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def select(tensor: Tensor, index: Mapping[int, Tensor]) -> Tensor:
    """Keep positions of a tensor.

    Args:
        tensor: any shape.
        index: dimension → positions kept [k].

    Returns:
        A new tensor with those dimensions k long.
    """
    for dim, positions in index.items():
        tensor = tensor.index_select(dim, positions.to(tensor.device))
    return tensor.contiguous()


def _factors(layer: nn.Module, rank: Rank, path: str) -> nn.Sequential:
    if isinstance(layer, nn.Linear):
        m, n = layer.weight.shape
        k = _count(rank.rank, min(m, n), f"factor: {path}.rank")
        to: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        return nn.Sequential(nn.Linear(n, k, bias=False, **to), nn.Linear(k, m, bias=layer.bias is not None, **to))
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        m, n = layer.weight.shape[:2]
        k = _count(rank.rank, min(m, n * layer.weight[0, 0].numel()), f"factor: {path}.rank")
        if rank.spatial not in get_args(Spatial):
            raise StructureError(f"factor: {path}.spatial is {rank.spatial!r}, expected first or last")
        to = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        kernel: dict[str, Any] = {
            name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        point: dict[str, Any] = {"kernel_size": 1}
        first, last = (kernel, point) if rank.spatial == "first" else (point, kernel)
        bias = layer.bias is not None
        return nn.Sequential(nn.Conv2d(n, k, bias=False, **first, **to), nn.Conv2d(k, m, bias=bias, **last, **to))
    raise StructureError(f"factor: {path} is a {type(layer).__name__}, expected a Linear or an ungrouped Conv2d")


def _values(edit: Edit) -> list[Iterable[str]]:
    return [getattr(edit, f.name) for f in fields(edit)]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value


def _edit(item: dict[str, Any], where: str) -> Edit:
    kind = EDITS.get(str(item.get("edit")))
    if kind is None:
        raise StructureError(f"{where}: unknown edit {item.get('edit')!r}, known are {', '.join(EDITS)}")
    readers: dict[str, Callable[[Any, str], Any]] = {
        "widths": lambda v, w: {p: _record(Width, r, f"{w}.{p}") for p, r in _object(v, w).items()},
        "heads": lambda v, w: {p: _record(Heads, r, f"{w}.{p}") for p, r in _object(v, w).items()},
        "layers": lambda v, w: {p: _record(Rank, r, f"{w}.{p}") for p, r in _object(v, w).items()},
        "classes": _object,
        "paths": _object if kind is Drop else _names,
    }
    known = {f.name for f in fields(kind)}
    for key in item.keys() - known - {"edit"}:
        raise StructureError(f"{where}: {kind.edit} has no key {key!r}, known are {', '.join(sorted(known))}")
    return kind(**{key: readers[key](item[key], f"{where}.{key}") for key in known & item.keys()})


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StructureError(f"{where}: expected an object by module path, found {type(value).__name__}")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise StructureError(f"{where}: expected a list of module paths")
    return tuple(value)


def _record(kind: type[Any], value: Any, where: str) -> Any:
    try:
        return kind(**_object(value, where))
    except TypeError:
        known = ", ".join(f.name for f in fields(kind))
        raise StructureError(f"{where}: found keys {', '.join(value) or 'none'}, expected {known}") from None
