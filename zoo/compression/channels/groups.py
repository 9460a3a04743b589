"""Groups: the channels of a model that must be cut together, and what they cost.

The model is exported once; every channel of every tensor gets an id, and the rules of `rules` say which ids
are one and which are frozen. Ids that lie in the same tensors the same number of times are the units of one group: any
of them may go. No block is known by name, and what isn't understood is frozen.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from zoo.compression.channels import rules
from zoo.compression.channels.cutting import Traced
from zoo.compression.channels.ids import Vector
from zoo.compression.channels.trace import Layer, Walk
from zoo.structure import blocks
from zoo.structure.graph.exported import export
from zoo.structure.plan import Heads, Narrow, narrowing
from zoo.structure.tensors import tensors_of


@dataclass(frozen=True, eq=False)
class Slice:
    """Where a group's units lie in one tensor.

    Args:
        tensor: its path.
        dim: the dimension.
        index: the positions in it of each unit [units, span]; a head has many, thrice as many where q, k, v are one.
        groups: of the weight of a grouped convolution, how many groups it has and how many channels each of them reads.
        whole: whether its groups are cut as a whole.
        written: whether they are the outputs of the layer whose weight it is, which in transposed ones lie second.
    """

    tensor: str
    dim: int
    index: Tensor
    groups: tuple[int, int] | None = None
    whole: bool = False
    written: bool = False


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
        residual: whether several layers write them into a sum.
        unfitted: paths of layers that mix them and can't be fitted to fewer.
    """

    name: str
    units: int
    slices: tuple[Slice, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    depthwise: tuple[str, ...] = ()
    head_dim: int | None = None
    residual: bool = False
    unfitted: tuple[str, ...] = ()


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
    normalised: Mapping[str, str] = field(default_factory=dict)  # layer that a batch norm alone reads → the norm's mean
    frozen: Mapping[str, str] = field(default_factory=dict)  # path of a layer none of whose outputs can be cut → why
    traced: Traced | None = None
    roots: tuple[Tensor, ...] = ()  # ids of each group's units

    def total(self, costs: Iterable[Cost], kept: Sequence[int]) -> float:
        """Add costs up for so many units kept of each group."""
        cut = [1 - k / group.units for k, group in zip(kept, self.groups, strict=True)]
        return sum(
            cost.count * prod(1 - sum(share * cut[g] for g, share in axis.items()) for axis in cost.axes)
            for cost in costs
        )


def narrow(model: nn.Module, groups: Sequence[Group], kept: Sequence[int]) -> Narrow:
    """The edit that keeps so many units of each group.

    Args:
        model: that was analysed.
        groups: as analysed.
        kept: how many units of each.
    """
    held = tensors_of(model)
    shapes: dict[str, list[int]] = {}
    heads: dict[str, Heads] = {}
    fewer: dict[str, int] = {}
    for group, count in zip(groups, kept, strict=True):
        if count == group.units:
            continue
        if group.head_dim is not None:
            heads[group.name] = Heads(count, group.head_dim)
            continue
        for piece in group.slices:
            shape = shapes.setdefault(piece.tensor, list(held[piece.tensor].shape))
            shape[piece.dim] -= (group.units - count) * piece.index.shape[1]
            if piece.whole and piece.groups is not None and piece.groups[1] > 1:
                layer = piece.tensor.rpartition(".")[0]
                fewer[layer] = piece.groups[0] * shape[piece.dim] // len(held[piece.tensor])
    return narrowing(model, shapes, heads, fewer)


def select(groups: Sequence[Group], kept: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut tensors to the units kept of each group.

    Args:
        groups: as analysed.
        kept: of each group, indices of its units [k].
        tensors: path → tensor of the dense model.

    Returns:
        Path → tensor of the narrowed model; uncut ones are the same objects.
    """
    stays: dict[tuple[str, int], Tensor] = {}
    for group, units in zip(groups, kept, strict=True):
        gone = torch.ones(group.units, dtype=torch.bool)
        gone[units] = False
        for piece in group.slices if bool(gone.any()) else ():
            if piece.tensor in tensors:
                every = torch.ones(tensors[piece.tensor].shape[piece.dim], dtype=torch.bool)
                stays.setdefault((piece.tensor, piece.dim), every)[piece.index[gone].flatten()] = False
    cut = dict(tensors)
    for (path, dim), stay in stays.items():
        cut[path] = cut[path].index_select(dim, stay.nonzero()[:, 0].to(cut[path].device))
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
    return trace(exported(model, image), model, {})


def exported(model: nn.Module, image: Tensor) -> ExportedProgram:
    """Export a model with a batch of at least two, so that the batch can be any."""
    return export(model, image if len(image) > 1 else image.repeat(2, 1, 1, 1))


def trace(program: ExportedProgram, model: nn.Module, frozen: Mapping[tuple[str, int], str]) -> Analysis:
    """Find the groups of a program.

    A view that splits channels along two dimensions keeps ids along one of them alone; where these turn out frozen,
    the next is tried.

    Args:
        program: exported.
        model: that it was exported from.
        frozen: path and dimension of a tensor whose channels are to stay → why.
    """
    choices: dict[str, int] = {}
    for _ in range(3):
        walk = Walk(program, model, choices)
        for node in program.graph.nodes:
            walk.visit(node, rules.apply)
        for (path, dim), reason in frozen.items():
            if path in walk.held:  # else the model doesn't read it
                walk.ids.freeze(walk.held[path][dim], reason)
        components, reasons = walk.ids.resolve()
        roots = components.clone()
        roots[torch.isin(roots, torch.tensor(list(reasons)))] = 0
        again = [name for name, kept, ways in walk.splits if not roots[kept].any() and choices.get(name, 0) < ways - 1]
        if not again:
            break
        choices |= {name: choices.get(name, 0) + 1 for name in again}
    return _analysis(walk, model, roots, components, reasons)


def _analysis(walk: Walk, model: nn.Module, roots: Tensor, components: Tensor, reasons: Mapping[int, str]) -> Analysis:
    found = _units(walk, roots)
    unit = torch.full((len(roots),), -1)
    group = torch.full((len(roots),), -1)
    for g, ids in enumerate(found):
        unit[ids], group[ids] = torch.arange(len(ids)), g
    unit, group = unit[roots], group[roots]
    whole = {f"{path}.weight" for _, path in walk.depthwise}
    outputs = torch.zeros(len(roots), dtype=torch.bool)
    outputs[torch.cat([torch.zeros(0, dtype=torch.long), *(vector for vector, _ in walk.writers)])] = True
    slices: list[list[Slice]] = [[] for _ in found]
    for path, axes in walk.held.items():
        for dim, vector in enumerate(axes):
            if vector is None:
                continue
            for g in group[vector].unique().tolist():
                if g >= 0:
                    at = (group[vector] == g).nonzero()[:, 0]
                    order = unit[vector[at]].argsort(stable=True)
                    index, grouped = at[order].view(len(found[g]), -1), walk.groups.get(path)
                    written = bool(outputs[vector[at]].any())
                    slices[g].append(Slice(path, dim, index, grouped, path in whole, written))

    def of(layers: Iterable[Layer]) -> list[tuple[str, ...]]:
        paths: list[dict[str, None]] = [{} for _ in found]
        for vector, path in layers:
            for g in group[vector].unique().tolist():
                if g >= 0:
                    paths[g][path] = None
        return [tuple(each) for each in paths]

    writers, readers, depthwise = of(walk.writers), of(walk.readers), of(walk.depthwise)
    summed = {g for vector in walk.sums for g in group[vector].unique().tolist()}
    groups = []
    names: dict[str, int] = {}
    for g in range(len(found)):
        first = writers[g][0] if writers[g] else slices[g][0].tensor
        heads = _heads(model, slices[g], len(found[g]))
        name = heads[0] if heads else first
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}:{names[name]}"
        groups.append(
            Group(
                name,
                len(found[g]),
                tuple(slices[g]),
                writers[g],
                readers[g],
                depthwise[g],
                heads[1] if heads else None,
                g in summed and len(writers[g]) > 1,
            )
        )

    def axes_of(vectors: Iterable[Vector]) -> tuple[Mapping[int, float], ...]:
        shares = []
        for vector in vectors:
            if vector is not None:
                which, counts = group[vector].unique(return_counts=True)
                pairs = zip(which.tolist(), counts.tolist(), strict=True)
                shares.append({g: n / len(vector) for g, n in pairs if g >= 0})
        return tuple(share for share in shares if share)

    macs = [Cost(count, axes_of(vectors)) for count, vectors in walk.macs]
    params = [Cost(p.numel(), axes_of(walk.held.get(path, ()))) for path, p in model.named_parameters()]
    why = {
        path: reasons.get(int(first_roots[0]), "cut with nothing else")
        for vector, path in walk.writers
        if not (group[vector] >= 0).any()
        for first_roots in [components[vector]]
    }
    return Analysis(
        tuple(groups),
        tuple(macs),
        tuple(params),
        walk.normalised(),
        why,
        Traced(walk.program, walk.paths, walk.values, roots),
        tuple(found),
    )


def _units(walk: Walk, roots: Tensor) -> list[Tensor]:
    """Roots of each group's units: those that lie in the same values, equally often."""
    generator = torch.Generator().manual_seed(0)
    vectors = [vector for axes in walk.held.values() for vector in axes if vector is not None]
    for value in walk.values.values():
        for axes in value if isinstance(value, list) and value and isinstance(value[0], list) else [value]:
            vectors += [vector for vector in axes or () if vector is not None]
    vectors = list({id(vector): vector for vector in vectors}.values())
    keys = torch.randint(-(2**62), 2**62, (len(vectors),), generator=generator)
    key = keys.repeat_interleave(torch.tensor([len(vector) for vector in vectors]))
    every = roots[torch.cat(vectors)]
    signature = torch.zeros(len(roots), dtype=torch.long).index_add(0, every, key)
    used = torch.zeros(len(roots), dtype=torch.bool)
    inner = [vector for vector in walk.inner if vector is not None]
    if inner:
        used[roots[torch.cat(inner)]] = True
    held = torch.zeros(len(roots), dtype=torch.bool)
    held[roots[torch.cat([v for axes in walk.held.values() for v in axes if v is not None])]] = True
    used &= held
    used[0] = False
    live = used.nonzero()[:, 0]
    groups: dict[int, list[int]] = {}
    for root, key_ in zip(live.tolist(), signature[live].tolist(), strict=True):
        groups.setdefault(key_, []).append(root)
    return [torch.tensor(each) for each in groups.values() if len(each) > 1]


def _heads(model: nn.Module, slices: Sequence[Slice], units: int) -> tuple[str, int] | None:
    """Path of the attention module whose heads these are, and their width."""
    path = slices[0].tensor.rpartition(".")[0]
    while path:
        module = model.get_submodule(path)
        layout = blocks.LAYOUTS.get(blocks.class_name(module))
        if layout is not None:
            held = tensors_of(module)
            theirs = {name for name, dims in layout.tensors.items() if name in held and "h" in "".join(dims)}
            lengths = layout.lengths(module)
            found = {piece.tensor.removeprefix(f"{path}.") for piece in slices}
            return (path, lengths["d"]) if found == theirs and lengths["h"] == units else None
        path = path.rpartition(".")[0]
    return None
