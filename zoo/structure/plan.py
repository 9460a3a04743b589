"""Plan: a compressed structure as a list of edits over a base.

Edits state intent (this layer has 12 outputs, this attention 2 heads), never the attributes of a class: what those must
become is worked out when the plan is applied, from tensor shapes and from the table in `structure.blocks`. A plan is a
value, reads and writes JSON, and composes: what one edit leaves, the next may address.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from msgspec import Meta, Struct, json, structs
from torch import Tensor, nn

from zoo.declarations import Name, validated
from zoo.errors import StructureError
from zoo.structure import blocks
from zoo.structure.narrowing import count, followed, narrow_heads_, narrow_layer_, narrow_tensor_, width_of
from zoo.structure.remnants import Identity, Zero
from zoo.structure.tensors import tensors_of

Spatial = Literal["first", "last"]
Remnant = Literal["identity", "zero"]
MAX_GROWTH = 2  # times the values of the base; a layer split at full rank has twice its own
MAX_EDITS = 100  # each goes through all modules; what the methods leave has up to four
MAX_WORDS = 32  # words of a path, and so how deep factors lie in factors
Path = Annotated[
    str,
    Meta(
        max_length=1_000,
        pattern=rf"^[^.]*(\.[^.]*){{0,{MAX_WORDS - 1}}}\Z",
        description=f"a path of at most {MAX_WORDS} words",
    ),
]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]  # the base bounds them further


class Width(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Channels that a layer keeps.

    Args:
        outputs: channels out; for a norm or a per-channel scale its channels, for a recurrent layer its hidden units.
        inputs: channels in.
        groups: of a convolution or group norm, where they aren't the base's (a depthwise convolution's `inputs` and
            groups follow from its `outputs`).
    """

    outputs: Size | None = None
    inputs: Size | None = None
    groups: Size | None = None


class Heads(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Heads that an attention module keeps, and their width; `key_dim` is that of queries and keys where it differs."""

    num_heads: Size
    head_dim: Size
    key_dim: Size | None = None


class Rank(Struct, frozen=True, forbid_unknown_fields=True):
    """How a layer is split in two.

    Args:
        rank: channels between the factors.
        spatial: which factor of a convolution keeps the kernel, stride, padding and dilation.
    """

    rank: Size
    spatial: Spatial = "first"


class _Edit(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="edit", tag=str.lower):
    @property
    def edit(self) -> str:
        """Its name in a plan's JSON."""
        return type(self).__name__.lower()


class Narrow(_Edit, frozen=True):
    """Fewer channels.

    Args:
        widths: by path of a layer that holds its tensors itself (linear, convolution, recurrent, norm, scale).
        heads: by path of an attention module.
        tensors: shapes by path of a tensor that is no layer's (a position embedding, a bias table, a block's scale).
    """

    widths: Mapping[Path, Width] = {}
    heads: Mapping[Path, Heads] = {}
    tensors: Mapping[Path, tuple[Size, ...]] = {}

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


class Factor(_Edit, frozen=True):
    """W (m × n) becomes B·A with A (rank × n) and B (m × rank): two layers in sequence, the bias in the second."""

    layers: Mapping[Path, Rank] = {}

    def apply_(self, model: nn.Module) -> None:
        """Replace each layer by its two factors."""
        for path, rank in self.layers.items():
            _replace_(model, path, _factors(_module(model, self, path), rank, path))


class Mask(_Edit, frozen=True):
    """Stored zeros stay zero while training; the structure is the base's."""

    paths: tuple[Path, ...] = ()

    def apply_(self, model: nn.Module) -> None:
        """Check that each path has a weight."""
        for path in self.paths:
            if not isinstance(getattr(_module(model, self, path), "weight", None), Tensor):
                raise StructureError(f"mask: {path} has no weight to mask")


class Drop(_Edit, frozen=True):
    """A block becomes the identity, or a branch beside a shortcut becomes zero."""

    paths: Mapping[Path, Remnant] = {}

    def apply_(self, model: nn.Module) -> None:
        """Replace each module."""
        for path, remnant in self.paths.items():
            _module(model, self, path)
            if remnant not in get_args(Remnant):
                raise StructureError(f"drop: {path} becomes {remnant!r}, expected identity or zero")
            _replace_(model, path, Identity() if remnant == "identity" else Zero())


class Swap(_Edit, frozen=True):
    """A module takes an allow-listed class (`replacements.REPLACEMENTS`) where timm's own hard-codes a width."""

    classes: Mapping[Path, Name] = {}

    def apply_(self, model: nn.Module) -> None:
        """Change each class; parameters and attributes stay."""
        from zoo.structure.replacements import REPLACEMENTS  # timm's own come with it, which a graph does without

        for path, name in self.classes.items():
            module = _module(model, self, path)
            replacement = REPLACEMENTS.get(name) if isinstance(name, str) else None
            if replacement is None:
                raise StructureError(f"swap: {path} names unknown class {name!r}, known are {', '.join(REPLACEMENTS)}")
            if not issubclass(replacement, type(module)):
                raise StructureError(f"swap: {path} is a {blocks.class_name(module)}, which {name} doesn't replace")
            module.__class__ = replacement


Edit = Narrow | Factor | Mask | Drop | Swap


@dataclass(frozen=True)
class Plan:
    """Edits, applied in order."""

    edits: tuple[Edit, ...] = ()

    def __add__(self, other: Self) -> "Plan":
        return Plan(self.edits + other.edits)

    def paths(self) -> list[str]:
        """Every module path that an edit addresses, each once."""
        return list(dict.fromkeys(path for edit in self.edits for item in structs.astuple(edit) for path in item))

    def to_json(self) -> list[dict[str, Any]]:
        """The plan as JSON: one object an edit; what has its default is left out."""
        rows: list[dict[str, Any]] = json.decode(json.encode(self.edits))
        return rows

    @classmethod
    def from_json(cls, data: Any, where: str = "plan") -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            StructureError: an unknown edit, an unknown or missing key, a value of another type, or too much of one.
        """
        return cls(validated(Annotated[tuple[Edit, ...], Meta(max_length=MAX_EDITS)], data, where, StructureError))


def apply_(model: nn.Module, plan: Plan) -> nn.Module:
    """Apply a plan to its base in place.

    Args:
        model: the base, on the meta device (as `load` does it) or with values, of which the first channels are kept.
        plan: the edits.

    Returns:
        The same model.

    Raises:
        StructureError: an edit addresses a module that isn't there, of a class that can't be edited, or asks for more
            than the base has, or for factors of factors that make it larger.
    """
    splits = any(isinstance(edit, Factor) for edit in plan.edits)  # no other edit adds values
    before = _values(model) if splits else 0
    with followed(model):
        for edit in plan.edits:
            edit.apply_(model)
    if splits and (left := _values(model)) > MAX_GROWTH * before:
        raise StructureError(f"the plan leaves {left:,} values, its base has {before:,}: refused")
    return model


def _values(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in tensors_of(model).values())


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
