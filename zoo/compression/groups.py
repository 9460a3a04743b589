"""Groups: the channels of a model that must be cut together, and what they cost.

The model is exported once and every value on the way gets the space that its channels live in. A convolution or
linear layer reads one space and opens a new one; norms, depthwise convolutions, pooling and pointwise functions stay
in theirs; a product of two joins theirs (squeeze-and-excite). Whatever else a space meets freezes it: a sum (the
residual stream), the output, and every operation that isn't understood. What remains are the widths inside the blocks.
Heads come from the table of attention classes in `structure.blocks`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from zoo.errors import StructureError
from zoo.structure import blocks
from zoo.structure.plan import Heads, Narrow, Width

aten = torch.ops.aten
_SAME_CHANNELS = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.gelu_.default,  # activations that torch doesn't tag as pointwise
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.mish_.default,
    aten.relu6_.default,
}
_PRODUCTS = {aten.mul.Tensor, aten.mul_.Tensor}


@dataclass(frozen=True, eq=False)
class Slice:
    """Where a group's units lie in one tensor.

    Args:
        tensor: its path.
        dim: the dimension.
        index: the positions in it of each unit [units, span]; a head has many, thrice as many where q, k, v are one.
    """

    tensor: str
    dim: int
    index: Tensor

    def positions(self, kept: Tensor) -> Tensor:
        """Positions in the dimension of the units kept, rising."""
        return self.index[kept].flatten().sort().values


@dataclass(frozen=True)
class Group:
    """Channels that are cut together.

    Args:
        name: the path of the layer that opens them; of the attention module for heads.
        units: how many there are to choose from.
        slices: where they lie.
        writers: paths of the layers whose outputs they are.
        readers: paths of the layers that mix them.
        depthwise: paths of the convolutions between that take each channel by itself.
        head_dim: width of one head where the units are heads, else None.
    """

    name: str
    units: int
    slices: tuple[Slice, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    depthwise: tuple[str, ...] = ()
    head_dim: int | None = None


@dataclass(frozen=True)
class Cost:
    """A count that shrinks with its groups: `count` · ∏ over axes of the share of the axis that stays.

    Args:
        count: of the dense model, for one image.
        axes: of each dimension that can be cut, group (its index) → the share of the dimension that it takes; several
            where tensors were joined end to end. What no group takes stays.
    """

    count: int
    axes: tuple[Mapping[int, float], ...]


@dataclass(frozen=True)
class Analysis:
    """What can be cut in a model: the groups, and what each multiply-accumulate and parameter depends on."""

    groups: tuple[Group, ...]
    macs: tuple[Cost, ...]
    params: tuple[Cost, ...]
    normalised: frozenset[str] = frozenset()  # paths of the layers whose outputs a batch norm takes

    def total(self, costs: Iterable[Cost], kept: Sequence[int]) -> float:
        """Add costs up for so many units kept of each group."""
        cut = [1 - k / group.units for k, group in zip(kept, self.groups, strict=True)]
        return sum(
            cost.count * prod(1 - sum(share * cut[g] for g, share in axis.items()) for axis in cost.axes)
            for cost in costs
        )


def narrow(groups: Sequence[Group], kept: Sequence[int]) -> Narrow:
    """The edit that keeps so many units of each group."""
    widths: dict[str, dict[str, int]] = {}
    heads: dict[str, Heads] = {}
    for group, count in zip(groups, kept, strict=True):
        if count == group.units:
            continue
        if group.head_dim is not None:
            heads[group.name] = Heads(count, group.head_dim)
            continue
        for piece in group.slices:
            width = widths.setdefault(piece.tensor.rpartition(".")[0], {})
            width["inputs" if piece.dim == 1 else "outputs"] = count
        for path in group.depthwise:
            widths[path]["inputs"] = count
    return Narrow({path: Width(**width) for path, width in widths.items()}, heads)


def select(groups: Sequence[Group], kept: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut tensors to the units kept of each group.

    Args:
        groups: as analysed.
        kept: of each group, indices of its units [k].
        tensors: path → tensor of the dense model.

    Returns:
        Path → tensor of the narrowed model; uncut ones are the same objects.
    """
    cut = dict(tensors)
    for group, units in zip(groups, kept, strict=True):
        for piece in group.slices:
            if piece.tensor in cut:
                positions = piece.positions(units).to(cut[piece.tensor].device)
                cut[piece.tensor] = cut[piece.tensor].index_select(piece.dim, positions)
    return cut


def analyse(model: nn.Module, image: Tensor) -> Analysis:
    """Find the groups of a model and what depends on them.

    Args:
        model: in eval mode.
        image: one batch that it takes, [B, C, H, W].

    Returns:
        Groups in the order of the forward pass, and costs for one image; they add up to what `measure` counts.

    Raises:
        StructureError: the model can't be exported.
    """
    try:
        program = torch.export.export(model, (image,), strict=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StructureError(f"prune: the model can't be exported: {reason}") from error
    paths = {
        spec.arg.name: spec.target or ""
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    walk = _Walk(model, paths, image.shape[0])
    for node in program.graph.nodes:
        walk.visit(node)
    return walk.finish()


@dataclass(frozen=True)
class _Piece:
    """A slice while it isn't known how many units there are: the dimension is copies × units × span long."""

    tensor: str
    dim: int
    copies: int = 1
    span: int = 1

    def of(self, units: int) -> Slice:
        every = torch.arange(self.copies * units * self.span).view(self.copies, units, self.span)
        return Slice(self.tensor, self.dim, every.transpose(0, 1).flatten(1))


class _Walk:
    """One pass over the exported graph; spaces are integers under union-find, 0 is frozen."""

    def __init__(self, model: nn.Module, paths: Mapping[str, str], batch: int) -> None:
        self.model, self.paths, self.batch = model, paths, batch
        self.parent = [0]
        self.value: dict[Node, tuple[int, int]] = {}  # node → its channels' space and dimension
        self.slices: list[tuple[int, _Piece]] = []
        self.writers: list[tuple[int, str]] = []
        self.readers: list[tuple[int, str]] = []
        self.depthwise: list[tuple[int, str]] = []
        self.owner: dict[Node, str] = {}
        self.normalised: set[str] = set()
        self.macs: list[tuple[int, tuple[int, ...]]] = []
        self.heads: dict[str, tuple[int, blocks.Layout]] = {}
        for path, module in model.named_modules():
            found = blocks.LAYOUTS.get(blocks.class_name(module))
            if found:
                self.heads[path] = (self._open(), found)

    def _open(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def find(self, space: int) -> int:
        while self.parent[space] != space:
            space = self.parent[space]
        return space

    def join(self, spaces: Iterable[int]) -> int:
        roots = sorted({self.find(space) for space in spaces})
        for root in roots[1:]:
            self.parent[root] = roots[0]
        return roots[0]

    def visit(self, node: Node) -> None:
        tensors = [item for item in node.all_input_nodes if item in self.value]
        if node.op == "placeholder":
            return
        if node.op == "call_function" and node.target in (aten.conv2d.default, aten.linear.default):
            self._contract(node)
        elif node.op == "call_function" and node.target == aten.batch_norm.default and tensors:
            self._normalise(node)
        elif node.op == "call_function" and self._keeps_channels(node, tensors):
            self.value[node] = (self.join(self.value[t][0] for t in tensors), self.value[tensors[0]][1])
        else:
            self.join([0, *(self.value[t][0] for t in tensors)])
            if node.op == "call_function":
                self._product(node)

    def _keeps_channels(self, node: Node, tensors: Sequence[Node]) -> bool:
        if not tensors or len({self.value[t][1] for t in tensors}) > 1:
            return False
        if node.target == aten.mean.dim:
            dims: Any = node.args[1]
            return bool(min(d % tensors[0].meta["val"].ndim for d in dims) > self.value[tensors[0]][1])
        if len(node.all_input_nodes) == 1:
            return node.target in _SAME_CHANNELS or torch.Tag.pointwise in getattr(node.target, "tags", ())
        dim = self.value[tensors[0]][1]
        sizes = {t.meta["val"].shape[dim] for t in node.all_input_nodes if t.meta["val"].ndim > dim}
        return node.target in _PRODUCTS and len(tensors) == len(node.all_input_nodes) and len(sizes) == 1

    def _contract(self, node: Node) -> None:
        x, weight, *rest = node.args
        assert isinstance(x, Node)
        assert isinstance(weight, Node)
        convolution = node.target == aten.conv2d.default
        dim = 1 if convolution else node.meta["val"].ndim - 1
        groups = int(_argument(node, 6, 1)) if convolution else 1
        shape, path = weight.meta["val"].shape, self.paths.get(weight.name, "")
        owner = path.rpartition(".")[0]
        space, at = self.value.get(x, (0, dim))
        positions = prod(node.meta["val"].shape) // node.meta["val"].shape[dim] // self.batch
        count = positions * prod(shape)
        if at != dim or not path:
            self.join([0, space])
            space = 0
        bias = [self.paths.get(b.name, "") for b in rest[:1] if isinstance(b, Node)]
        attention = self._attention(owner)
        if groups == 1:
            new = 0 if attention or not all((path, *bias)) else self._open()
            self.slices.append((space, _Piece(path, 1)))
            if space:
                self.readers.append((space, owner))
            self.macs.append((count, (space, self.heads[attention][0] if attention else new)))
        elif shape[1] == 1 and groups == shape[0] and space:
            new = space
            self.depthwise.append((space, owner))
            self.macs.append((count, (space,)))
        else:
            self.join([0, space])
            new = 0
            self.macs.append((count, ()))
        if new:
            self.slices += [(new, _Piece(name, 0)) for name in (path, *bias)]
            if groups == 1:
                self.writers.append((new, owner))
        self.value[node] = (new, dim)
        self.owner[node] = owner

    def _attention(self, owner: str) -> str | None:
        """The attention module whose heads a layer's width follows from."""
        parent, _, name = owner.rpartition(".")
        layout = self.heads.get(parent, (0, None))[1]
        return parent if layout and any(path.startswith(f"{name}.") for path in layout.tensors) else None

    def _normalise(self, node: Node) -> None:
        x = node.args[0]
        assert isinstance(x, Node)
        space, dim = self.value[x]
        if x in self.owner:
            self.normalised.add(self.owner[x])
        self.slices += [(space, _Piece(self.paths[t.name], 0)) for t in node.args[1:5] if isinstance(t, Node)]
        self.value[node] = (space, dim)

    def _product(self, node: Node) -> None:
        """Count products between activations; those of an attention module go with its heads."""
        shapes = [t.meta["val"].shape for t in node.all_input_nodes if isinstance(t.meta.get("val"), Tensor)]
        if node.target == aten.scaled_dot_product_attention.default:
            (*lead, n, d), (*_, m, _), (*_, e) = shapes[:3]
            count = prod(lead) * n * m * (d + e)
        elif node.target in (aten.matmul.default, aten.bmm.default, aten.mm.default):
            count = prod(node.meta["val"].shape) * shapes[0][-1]
        else:
            return
        stack = [entry[0].removeprefix("L['self'].") for entry in node.meta.get("nn_module_stack", {}).values()]
        inside = [self.heads[path][0] for path in stack if path in self.heads]
        self.macs.append((count // self.batch, tuple(inside[:1])))

    def finish(self) -> Analysis:
        for path, (space, layout) in self.heads.items():
            self._open_heads(path, space, layout)
        by_tensor: dict[str, dict[_Piece, int]] = {}
        for space, piece in self.slices:  # a layer that is used twice has the same channels both times
            self.join([space, by_tensor.setdefault(piece.tensor, {}).setdefault(piece, space)])
        live = dict.fromkeys(root for space, _ in self.slices if (root := self.find(space)))
        groups: list[Group] = []
        index: dict[int, int] = {}
        for root in live:
            group = self._group(root)
            if group.readers and group.units > 1:
                index[root] = len(groups)
                groups.append(group)
        order = {path: i for i, (path, _) in enumerate(self.model.named_modules())}
        ranking = sorted(range(len(groups)), key=lambda g: order[groups[g].name])
        rank = {old: new for new, old in enumerate(ranking)}

        def involved(spaces: Iterable[int]) -> tuple[Mapping[int, float], ...]:
            roots = (self.find(space) for space in spaces)
            return tuple({rank[index[root]]: 1.0} for root in roots if root in index)

        macs = [Cost(count, involved(spaces)) for count, spaces in self.macs]
        params = [
            Cost(p.numel(), involved(by_tensor.get(path, {}).values())) for path, p in self.model.named_parameters()
        ]
        return Analysis(tuple(groups[g] for g in ranking), tuple(macs), tuple(params), frozenset(self.normalised))

    def _open_heads(self, path: str, space: int, layout: blocks.Layout) -> None:
        module = self.model.get_submodule(path)
        sizes = layout.sizes(module)
        held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, patterns in layout.tensors.items():
            for dim, pattern in enumerate(patterns):
                if name in held and "h" in pattern:
                    copies, _, span = layout.positions(pattern, sizes).shape
                    self.slices.append((space, _Piece(f"{path}.{name}", dim, copies, span)))
        self.readers.append((space, f"{path}.{layout.reader}"))

    def _group(self, root: int) -> Group:
        for path, (space, layout) in self.heads.items():
            if space == root:
                units, head_dim = layout.sizes(self.model.get_submodule(path))
                slices, readers = self._of(root, self.slices), self._of(root, self.readers)
                slices = tuple(piece.of(units) for piece in slices)
                return Group(path, units, slices, (f"{path}.qkv",), readers, head_dim=head_dim)
        slices, writers = self._of(root, self.slices), self._of(root, self.writers)
        units = self.model.get_parameter(f"{writers[0]}.weight").shape[0]
        readers, depthwise = self._of(root, self.readers), self._of(root, self.depthwise)
        slices = tuple(piece.of(units) for piece in slices)
        return Group(writers[0], units, slices, writers, readers, depthwise)

    def _of(self, root: int, items: Iterable[tuple[int, Any]]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(item for space, item in items if self.find(space) == root))


def _argument(node: Node, position: int, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else default
