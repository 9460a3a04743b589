"""A converted checkpoint seen as a narrowed timm model: where tensors match one to one, a plan takes the graph's place.

torch-dag kept timm's module names, with underscores for dots, but for norms with an activation, which it numbered in
the order in which they run. Tensors are matched by name, the rest in order among those of the same kind; whether the
match is right is decided by the outputs, which must be the graph's.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Base
from zoo.errors import StructureError, UnknownName, WeightsError
from zoo.hub import weights
from zoo.structure import base as bases
from zoo.structure.base import skeleton
from zoo.structure.graph import Graph, build
from zoo.structure.plan import Narrow, Plan, Width, apply_

CLOSE = 1e-4  # of the largest output; another order of the same sums

Groups = dict[str, dict[str, str]]
"""Module, with underscores for dots → name of a tensor in it → the tensor's path."""


def timm_view(
    graph: Graph, tensors: Mapping[str, Tensor], base: Base, input: tuple[int, int, int]
) -> tuple[Plan, nn.Module] | None:
    """Find the plan over a timm model that a graph amounts to.

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
        names = _matched(bases.tensors(model), tensors)
        if names is None:
            return None
        values = {path: tensors[name].reshape(_like(tensors[name], model, path)) for path, name in names.items()}
        widths = dict(_widths(model, values))
        plan = Plan((Narrow(widths),)) if widths else Plan()
        narrowed = weights.assign_(apply_(model, plan), values, base.id).eval()
        images = torch.randn(2, *input, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = weights.assign_(build(graph), tensors, base.id)(images)
            found = narrowed(images)
    except (StructureError, UnknownName, WeightsError, RuntimeError, AssertionError, ValueError):
        return None
    same = isinstance(expected, Tensor) and isinstance(found, Tensor) and expected.shape == found.shape
    return (plan, narrowed) if same and _close(found, expected) else None


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


def _like(tensor: Tensor, model: nn.Module, path: str) -> tuple[int, ...]:
    """The tensor's shape, with as many axes as timm's has."""
    module, _, name = path.rpartition(".")
    expected = getattr(model.get_submodule(module), name)
    return tuple(tensor.shape) if tensor.dim() == expected.dim() else (*(1,) * (expected.dim() - 1), tensor.numel())


def _matched(timm: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Timm's paths → ours; None if they don't go one to one."""
    flat = {path.replace(".", "_"): path for path in ours}
    pairs = {path: flat.pop(path.replace(".", "_")) for path in timm if path.replace(".", "_") in flat}
    theirs, own = _groups(path for path in timm if path not in pairs), _groups(flat.values())
    for name in [name for name in theirs if len(theirs[name]) == len(own.get(name, ())) == 1]:
        (path,), (found,) = theirs.pop(name).values(), own.pop(name).values()
        pairs[path] = found  # one tensor each, under another name
    kinds = {tuple(sorted(group)) for group in own.values()}
    for kind in kinds:
        left = [name for name, group in theirs.items() if tuple(sorted(group)) == kind]
        right = [name for name, group in own.items() if tuple(sorted(group)) == kind]
        for one, other in zip(left, right, strict=False):
            same = own.pop(other)
            pairs |= {path: same[key] for key, path in theirs.pop(one).items()}
    if len(own) == len(theirs) == 1:  # a token of another name
        (one,), (other,) = (list(group.values()) for groups in (theirs, own) for group in groups.values())
        return {**pairs, one: other}
    return None if own or theirs else pairs


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
        if name is None:
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
