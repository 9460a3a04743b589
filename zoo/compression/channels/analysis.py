"""Analysis: which channels of a program are one group, and what each multiply-accumulate depends on.

The model is exported once; every channel of every tensor gets an id, and the rules of `rules` say which ids are one and
which are frozen. Ids that lie in the same values the same number of times are the units of one group: any of them may
go. No block is known by name, and what isn't understood is frozen.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from zoo.compression.channels import rules
from zoo.compression.channels.cutting import Traced
from zoo.compression.channels.groups import Analysis, Cost, Group, Slice
from zoo.compression.channels.ids import Vector
from zoo.compression.channels.trace import Layer, Walk
from zoo.structure import blocks
from zoo.structure.graph.tracing import export
from zoo.structure.tensors import tensors_of

Whole = Mapping[tuple[str, int], str]
"""Path and dimension of tensors whose channels stay → why."""


def exported(model: nn.Module, image: Tensor, dims: Sequence[int] = (0,)) -> ExportedProgram:
    """Export a model with a batch of at least two, so that the batch can be any, and other dimensions where asked."""
    return export(model, image if len(image) > 1 else image.repeat(2, 1, 1, 1), dims)


def analyse(program: ExportedProgram, model: nn.Module, whole: Whole = MappingProxyType({})) -> Analysis:
    """Find the groups of a program.

    A view that splits channels along two dimensions keeps ids along one of them alone; where these turn out frozen,
    the next is tried.

    Args:
        program: from `exported`.
        model: that it was exported from.
        whole: what isn't to be cut.

    Returns:
        Groups in the order of the forward pass, and costs for one image; they add up to what `measure` counts.
    """
    choices: dict[str, int] = {}
    for _ in range(3):
        walk = Walk(program, model, choices)
        for node in program.graph.nodes:
            walk.visit(node, rules.apply)
        for (path, dim), reason in whole.items():
            if path in walk.held:  # else the model doesn't read it
                walk.ids.freeze(walk.held[path][dim], reason)
        components, reasons = walk.ids.resolve()
        roots = components.clone()
        roots[torch.isin(roots, torch.tensor(list(reasons)))] = 0
        again = [name for name, kept, ways in walk.splits if not roots[kept].any() and choices.get(name, 0) < ways - 1]
        if not again:
            break
        choices |= {name: choices.get(name, 0) + 1 for name in again}
    members = _members(walk, roots)
    group, unit = torch.full((2, len(roots)), -1)  # of each id; −1 where it stays
    for g, ids in enumerate(members):
        group[ids], unit[ids] = g, torch.arange(len(ids))
    group, unit = group[roots], unit[roots]
    return Analysis(
        tuple(_groups(walk, model, group, unit, [len(ids) for ids in members])),
        tuple(Cost(count, _axes(group, vectors)) for count, vectors in walk.macs),
        tuple(Cost(p.numel(), _axes(group, walk.held.get(path, ()))) for path, p in model.named_parameters()),
        walk.normalised(),
        {
            path: reasons.get(int(components[vector][0]), "cut with nothing else")
            for vector, path in walk.writers
            if not (group[vector] >= 0).any()
        },
        Traced(walk.program, walk.paths, walk.values, roots),
        tuple(members),
    )


def _members(walk: Walk, roots: Tensor) -> list[Tensor]:
    """Roots of each group's units [units]: those that lie in the same values, equally often."""
    generator = torch.Generator().manual_seed(0)
    vectors = [vector for axes in walk.held.values() for vector in axes if vector is not None]
    for value in walk.values.values():
        for axes in value if isinstance(value, list) and value and isinstance(value[0], list) else [value]:
            vectors += [vector for vector in axes or () if vector is not None]
    vectors = list({id(vector): vector for vector in vectors}.values())
    keys = torch.randint(-(2**62), 2**62, (len(vectors),), generator=generator)
    key = keys.repeat_interleave(torch.tensor([len(vector) for vector in vectors]))
    signature = torch.zeros(len(roots), dtype=torch.long).index_add(0, roots[torch.cat(vectors)], key)
    used = _marked(roots, walk.inner) & _marked(roots, [each for axes in walk.held.values() for each in axes])
    used[0] = False
    live = used.nonzero()[:, 0]
    alike: dict[int, list[int]] = {}
    for root, key_ in zip(live.tolist(), signature[live].tolist(), strict=True):
        alike.setdefault(key_, []).append(root)
    return [torch.tensor(each) for each in alike.values() if len(each) > 1]


def _marked(roots: Tensor, vectors: Iterable[Vector]) -> Tensor:
    """Which roots some vectors hold [ids]."""
    marked = torch.zeros(len(roots), dtype=torch.bool)
    for vector in vectors:
        if vector is not None:
            marked[roots[vector]] = True
    return marked


def _groups(walk: Walk, model: nn.Module, group: Tensor, unit: Tensor, units: Sequence[int]) -> list[Group]:
    """What is known of each group, by the group and the unit of each id [ids] and how many units each has."""
    slices = _slices(walk, group, unit, units)
    writers, readers, depthwise = (
        _layers(group, layers, len(units)) for layers in (walk.writers, walk.readers, walk.depthwise)
    )
    summed = {g for vector in walk.sums for g in group[vector].unique().tolist()}
    groups = []
    names: dict[str, int] = {}
    for g, count in enumerate(units):
        first = writers[g][0] if writers[g] else slices[g][0].tensor
        path, head_dim = _heads(model, slices[g], count) or (first, None)
        names[path] = names.get(path, 0) + 1
        name = path if names[path] == 1 else f"{path}:{names[path]}"
        residual = g in summed and len(writers[g]) > 1
        groups.append(Group(name, count, tuple(slices[g]), writers[g], readers[g], depthwise[g], head_dim, residual))
    return groups


def _slices(walk: Walk, group: Tensor, unit: Tensor, units: Sequence[int]) -> list[list[Slice]]:
    """Where each group's units lie."""
    depthwise = {f"{path}.weight" for _, path in walk.depthwise}
    outputs = torch.zeros(len(group), dtype=torch.bool)
    for vector, _ in walk.writers:
        outputs[vector] = True
    slices: list[list[Slice]] = [[] for _ in units]
    held = [(path, dim, v) for path, axes in walk.held.items() for dim, v in enumerate(axes) if v is not None]
    for path, dim, vector in held:
        for g in group[vector].unique().tolist():
            if g >= 0:
                at = (group[vector] == g).nonzero()[:, 0]
                order = unit[vector[at]].argsort(stable=True)
                index, written = at[order].view(units[g], -1), bool(outputs[vector[at]].any())
                slices[g].append(Slice(path, dim, index, walk.groups.get(path), path in depthwise, written))
    return slices


def _layers(group: Tensor, layers: Iterable[Layer], count: int) -> list[tuple[str, ...]]:
    """Paths of the layers that do something with each group's channels."""
    paths: list[dict[str, None]] = [{} for _ in range(count)]
    for vector, path in layers:
        for g in group[vector].unique().tolist():
            if g >= 0:
                paths[g][path] = None
    return [tuple(each) for each in paths]


def _axes(group: Tensor, vectors: Iterable[Vector]) -> tuple[Mapping[int, float], ...]:
    """Of each dimension that can be cut, group → the share of it that it takes."""
    shares = []
    for vector in vectors:
        if vector is not None:
            which, counts = group[vector].unique(return_counts=True)
            pairs = zip(which.tolist(), counts.tolist(), strict=True)
            shares.append({g: n / len(vector) for g, n in pairs if g >= 0})
    return tuple(share for share in shares if share)


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
            cut = {piece.tensor.removeprefix(f"{path}.") for piece in slices}
            return (path, lengths["d"]) if cut == theirs and lengths["h"] == units else None
        path = path.rpartition(".")[0]
    return None
