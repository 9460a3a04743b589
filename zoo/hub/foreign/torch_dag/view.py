"""A converted checkpoint seen as a narrowed base: where tensors match one to one, a plan takes the graph's place.

torch-dag kept the module names of timm, or those that a detector says as `published_names`, with underscores for dots,
but for norms with an activation, which it numbered in the order in which they run. Tensors are matched by name, the
rest in order among those of the same kind; whether the match is right is decided by the outputs, which must be the
graph's.

Pruning may remove a whole branch, of which nothing is then left. What timm's model has and the checkpoint lacks is
dropped in front of the narrowing: a block becomes the identity; within a block every module of a branch becomes zero,
so that the shortcut remains, or the identity (a gate beside which the sum became a product).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Base
from zoo.errors import StructureError, UnknownName, WeightsError
from zoo.measurement.divergence import apart
from zoo.structure.base import skeleton
from zoo.structure.graph.graph import Graph, graph_module
from zoo.structure.plan import Drop, Narrow, Plan, Remnant, Width, apply_
from zoo.structure.tensors import assign_, tensors_of

REORDERED = 1e-4  # of the largest output; another order of the same sums
MAX_TRIES = 16  # ways to drop what is missing
CONTAINERS = (nn.Sequential, nn.ModuleList)

Groups = dict[str, dict[str, str]]
"""Module, with underscores for dots → name of a tensor in it → the tensor's path."""


def plan_view(
    graph: Graph, tensors: Mapping[str, Tensor], base: Base, input: tuple[int, int, int]
) -> tuple[Plan, nn.Module] | None:
    """Find the plan over a base that a graph amounts to.

    Args:
        graph: the converted checkpoint.
        tensors: its tensors.
        base: the dense model that it was pruned from.
        input: channels, height, width.

    Returns:
        The plan, and the narrowed model with its weights in eval mode; None where the graph is no narrowed model of
        that base.
    """
    try:
        model = skeleton(base)
        matched = _matched(tensors_of(model), tensors, _published(model))
        if matched is None:
            return None
        names, missing = matched
        values = {path: tensors[name].reshape(_like(tensors[name], model, path)) for path, name in names.items()}
        images = torch.randn(2, *input, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = assign_(graph_module(graph), tensors, base.id)(images)
    except _UNFIT:
        return None
    for drops in itertools.islice(_drops(model, missing), MAX_TRIES):
        try:
            plan, narrowed = _narrowed(base, drops, values)
            with torch.no_grad():
                found = narrowed(images)
        except _UNFIT:
            continue
        if apart(found, expected) <= REORDERED:
            return plan, narrowed
    return None


_UNFIT = (
    *(StructureError, UnknownName, WeightsError),
    *(RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError),
)
"""What a model says that isn't this one; also timm's code, of a module in whose place another class stands."""


def _narrowed(base: Base, drops: Mapping[str, Remnant], values: Mapping[str, Tensor]) -> tuple[Plan, nn.Module]:
    """The plan that drops these modules and gives what remains the widths of its values, and the model."""
    plan = Plan((Drop(drops),)) if drops else Plan()
    model = apply_(skeleton(base), plan)
    if widths := dict(_widths(model, values)):
        narrow = Plan((Narrow(widths),))
        plan, model = plan + narrow, apply_(model, narrow)
    return plan, assign_(model, values, base.id).eval()


def _drops(model: nn.Module, missing: set[str]) -> Iterator[dict[str, Remnant]]:
    """Ways to drop the missing modules, the likeliest first; blocks of one class that lack the same go alike."""
    kinds: dict[tuple[type, ...] | tuple[type, tuple[str, ...]], list[str]] = {}
    parents: dict[str, list[str]] = {}
    for path in _units(model, missing):
        parents.setdefault(path.rpartition(".")[0], []).append(path)
    for parent, paths in parents.items():
        holder = model.get_submodule(parent)
        if type(holder) in CONTAINERS:
            for path in paths:
                kinds.setdefault((type(model.get_submodule(path)),), []).append(path)
        else:
            lacks = tuple(path.rpartition(".")[2] for path in paths)
            kinds.setdefault((type(holder), lacks), []).extend(paths)
    orders: list[tuple[Remnant, Remnant]] = [
        ("identity", "zero") if len(kind) == 1 else ("zero", "identity") for kind in kinds
    ]
    for remnants in itertools.product(*orders):
        yield {path: remnant for paths, remnant in zip(kinds.values(), remnants, strict=True) for path in paths}


def _units(model: nn.Module, missing: set[str], path: str = "") -> Iterator[str]:
    """The largest modules of which everything is missing; not a container of blocks, but each of its blocks."""
    held = [name for name, module in model.named_modules() if next(_own(module), None) is not None]
    children = {name: child for name, child in model.named_children() if next(child.parameters(), None) is not None}
    whole = bool(held) and all(f"{path}.{name}".strip(".") in missing for name in held)
    holds_blocks = bool(children) and all(type(child) in CONTAINERS for child in children.values())
    if whole and path and type(model) not in CONTAINERS and not holds_blocks:
        yield path
        return
    for name, child in children.items():
        yield from _units(child, missing, f"{path}.{name}".strip("."))


def _own(module: nn.Module) -> Iterator[Tensor]:
    return (tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None)


def _like(tensor: Tensor, model: nn.Module, path: str) -> tuple[int, ...]:
    """The tensor's shape, with as many axes as timm's has."""
    module, _, name = path.rpartition(".")
    expected = getattr(model.get_submodule(module), name)
    return tuple(tensor.shape) if tensor.dim() == expected.dim() else (*(1,) * (expected.dim() - 1), tensor.numel())


def _published(model: nn.Module) -> Callable[[str], str]:
    """A tensor's path → what published weights call it, with underscores for dots."""
    names: Mapping[str, str] = getattr(model, "published_names", {})

    def published(path: str) -> str:
        prefix = next((each for each in names if path.startswith(f"{each}.")), "")
        return (names.get(prefix, "") + path.removeprefix(prefix)).replace(".", "_")

    return published


def _matched(
    timm: Mapping[str, Tensor], ours: Mapping[str, Tensor], published: Callable[[str], str]
) -> tuple[dict[str, str], set[str]] | None:
    """Timm's paths → ours, and timm's modules of which ours has nothing; None if ours don't all go to one of timm's."""
    flat = {path.replace(".", "_"): path for path in ours}
    pairs = {path: flat.pop(name) for path in timm if (name := published(path)) in flat}
    theirs, own = _groups(path for path in timm if path not in pairs), _groups(flat.values())
    for name in [name for name in theirs if len(theirs[name]) == len(own.get(name, ())) == 1]:
        (path,), (found,) = theirs.pop(name).values(), own.pop(name).values()
        pairs[path] = found  # one tensor each, under another name
    kinds = {tuple(sorted(group)) for group in own.values()}
    missing = _missing(timm, theirs, kinds)
    gone = {path.rpartition(".")[0] for name in missing for path in theirs.pop(name).values()}
    for kind in kinds:
        left = [name for name, group in theirs.items() if tuple(sorted(group)) == kind]
        right = [name for name, group in own.items() if tuple(sorted(group)) == kind]
        for one, other in zip(left, right, strict=False):
            same = own.pop(other)
            pairs |= {path: same[key] for key, path in theirs.pop(one).items()}
    if len(own) == len(theirs) == 1:  # a token of another name
        (one,), (other,) = (list(group.values()) for groups in (theirs, own) for group in groups.values())
        return {**pairs, one: other}, gone
    return None if own or theirs or not pairs else (pairs, gone)


def _missing(timm: Iterable[str], left: Groups, kinds: set[tuple[str, ...]]) -> list[str]:
    """Modules without a counterpart: those of a kind that isn't left over; of the others those that follow such a one.

    Timm makes modules in the order in which they run, so that a numbered norm belongs to the convolution before it.
    """
    missing, before = [], False
    for name in _groups(timm):
        kind = tuple(sorted(left.get(name, ())))
        before = name in left and kind != ("",) and (kind not in kinds or before)
        missing += [name] * before
    return missing


def _groups(paths: Iterable[str]) -> Groups:
    groups: Groups = {}
    for path in paths:
        module, _, name = path.rpartition(".")
        # A tensor of the model itself is a group of its own.
        groups.setdefault(module.replace(".", "_") if module else name, {})[name if module else ""] = path
    return groups


def _widths(model: nn.Module, values: Mapping[str, Tensor]) -> Iterable[tuple[str, Width]]:
    """What has other widths than the base's, layer by layer."""
    for path, module in model.named_modules():
        name = next((name for name, held in module._parameters.items() if held is not None and path), None)
        if name is None or f"{path}.{name}" not in values:
            continue
        value, held = values[f"{path}.{name}"], module._parameters[name]
        if held is None or value.shape == held.shape:
            continue
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups == module.in_channels > 1
            inputs = value.shape[0] if depthwise else value.shape[1] * module.groups
            yield path, Width(value.shape[0], inputs, value.shape[0] if depthwise else None)
        elif isinstance(module, nn.Linear):
            yield path, Width(value.shape[0], value.shape[1])
        else:
            yield path, Width(value.shape[0])
