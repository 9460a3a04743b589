"""Plan: a compressed structure as a list of edits over a base.

Edits state intent (this layer has 12 outputs, this attention 2 heads), never the attributes of a class: what those must
become is worked out when the plan is applied, from tensor shapes and from the table in `structure.blocks`. A plan is a
value, reads and writes JSON, and composes: what one edit leaves, the next may address.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_args

from torch import Tensor, nn

from zoo.errors import StructureError
from zoo.structure import blocks, feature_info
from zoo.structure.narrowing import count, narrow_heads_, narrow_layer_, narrow_tensor_, width_of
from zoo.structure.replacements import REPLACEMENTS, Identity, Zero

Spatial = Literal["first", "last"]
Remnant = Literal["identity", "zero"]


@dataclass(frozen=True)
class Width:
    """Channels that a layer keeps.

    Args:
        outputs: channels out; for a norm or a per-channel scale its channels, for a recurrent layer its hidden units.
        inputs: channels in.
        groups: of a convolution or group norm, where they aren't the base's (a depthwise convolution's `inputs` and
            groups follow from its `outputs`).
    """

    outputs: int | None = None
    inputs: int | None = None
    groups: int | None = None


@dataclass(frozen=True)
class Heads:
    """Heads that an attention module keeps, and their width; `key_dim` is that of queries and keys where it differs."""

    num_heads: int
    head_dim: int
    key_dim: int | None = None


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
    """Fewer channels.

    Args:
        widths: by path of a layer that holds its tensors itself (linear, convolution, recurrent, norm, scale).
        heads: by path of an attention module.
        tensors: shapes by path of a tensor that is no layer's (a position embedding, a bias table, a block's scale).
    """

    edit: ClassVar[str] = "narrow"
    widths: Mapping[str, Width] = field(default_factory=dict)
    heads: Mapping[str, Heads] = field(default_factory=dict)
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def apply_(self, model: nn.Module) -> None:
        """Keep the first channels of each."""
        for path, width in self.widths.items():
            narrow_layer_(_module(model, self, path), path, width.outputs, width.inputs, width.groups)
        for path, heads in self.heads.items():
            narrow_heads_(_module(model, self, path), path, heads.num_heads, heads.head_dim, heads.key_dim)
        for path, shape in self.tensors.items():
            narrow_tensor_(model, path, shape)
        for module in model.modules():
            blocks.refresh_block_(module)


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
        """The plan as JSON: one object an edit; what has its default is left out."""
        rows = (asdict(edit) for edit in self.edits)
        return [
            {"edit": edit.edit, **{key: _without_none(value) for key, value in row.items() if value}}
            for edit, row in zip(self.edits, rows, strict=True)
        ]

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
    with feature_info.followed(model):
        for edit in plan.edits:
            edit.apply_(model)
    return model


def narrowing(
    model: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    heads: Mapping[str, Heads] | None = None,
    groups: Mapping[str, int] | None = None,
) -> Narrow:
    """The edit that gives a model's tensors these shapes.

    Args:
        model: as it is before the edit; left as it was.
        shapes: by path of a tensor; those that keep theirs may be left out.
        heads: of attention modules; what follows from them is left out of the widths.
        groups: by path, of convolutions (not depthwise ones) and group norms that have fewer.

    Returns:
        The edit.
    """
    heads, groups = heads or {}, groups or {}
    following = {
        (f"{path}.{name}", dim)
        for path in heads
        for module in (model.get_submodule(path),)
        for name, dim in blocks.layout(module, path).patterns(module)
    }
    widths: dict[str, dict[str, int]] = {}
    for path, n in groups.items():
        widths[path] = {"groups": n}
        if isinstance(layer := model.get_submodule(path), nn.modules.conv._ConvNd):
            widths[path]["inputs"] = n * layer.weight.shape[1]
    tensors: dict[str, tuple[int, ...]] = {}
    for path, shape in shapes.items():
        before = blocks.tensor(model, path)
        if before is None:
            raise StructureError(f"narrow: the base has no tensor {path!r}")
        cut = [d for d, n in enumerate(shape) if n != before.shape[d] and (path, d) not in following]
        owner, _, held = path.rpartition(".")
        layer = model.get_submodule(owner)
        for dim in cut:
            named = width_of(layer, held, dim, shape[dim])
            if named is None or not owner:
                tensors[path] = tuple(shape)
            else:
                name, channels = named
                within = (
                    groups.get(owner, layer.groups)
                    if isinstance(layer, nn.modules.conv._ConvNd) and name == "inputs"
                    else 1
                )
                widths.setdefault(owner, {})[name] = channels * within
    return Narrow({path: Width(**width) for path, width in widths.items()}, heads, tensors)


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


def _factors(layer: nn.Module, rank: Rank, path: str) -> nn.Sequential:
    if isinstance(layer, nn.Linear):
        m, n = layer.weight.shape
        k = count(rank.rank, min(m, n), f"factor: {path}.rank")
        to: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        return nn.Sequential(nn.Linear(n, k, bias=False, **to), nn.Linear(k, m, bias=layer.bias is not None, **to))
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        m, n = layer.weight.shape[:2]
        k = count(rank.rank, min(m, n * layer.weight[0, 0].numel()), f"factor: {path}.rank")
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
        "tensors": lambda v, w: {p: _shape(r, f"{w}.{p}") for p, r in _object(v, w).items()},
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


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int for size in value):
        raise StructureError(f"{where}: expected a list of sizes")
    return tuple(value)


def _record(kind: type[Any], value: Any, where: str) -> Any:
    try:
        return kind(**_object(value, where))
    except TypeError:
        known = ", ".join(f.name for f in fields(kind))
        raise StructureError(f"{where}: found keys {', '.join(value) or 'none'}, expected {known}") from None
