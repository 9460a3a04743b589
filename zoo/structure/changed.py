"""What became of each layer of a model that was made smaller, by a plan or as a graph: its shape, rank and costs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from zoo.catalog.changes import Changes, Layer, Pair
from zoo.errors import StructureError
from zoo.measurement.macs import input_size, weights_of
from zoo.measurement.parts import macs_of
from zoo.structure.describing import describe, described

REST = ""  # norms, products of activations


def compared(
    dense: nn.Module, smaller: nn.Module, whole: Mapping[str, str] = MappingProxyType({}), free: str = ""
) -> Changes:
    """Compare a smaller model with the dense one.

    Args:
        dense: what it was made from; weights don't matter.
        smaller: a plan or a graph, with its description.
        whole: layers that couldn't change → why.
        free: what is said of those that could and didn't.

    Raises:
        StructureError: the two have no layer in common.
    """
    dense, about = described(dense, example=input_size(smaller))
    made, size = describe(smaller), input_size(dense)
    counts = macs_of(dense, size)
    layers = _layers(dense, counts)
    left = _weights(smaller, layers)
    if not any(left.values()):
        raise StructureError(f"changes: {made.name} has no layer of {about.name}: pass what it was made from")
    macs_was, params_was = _counts(dense, counts, layers)
    macs_now, params_now = _counts(smaller, macs_of(smaller, size), layers)
    found = []
    for path, weight in layers.items():
        before, after = _shape(dense, path, [weight]), _shape(dense, path, left[path])
        rank = len(left[path][0]) if len(left[path]) > 1 else None
        pairs = (macs_was[path], macs_now[path]), (params_was[path], params_now[path])
        stays = whole.get(path, free) if rank is None and before[0] == after[0] else ""
        found.append(Layer(path, (before[0], after[0]), (before[1], after[1]), rank, *pairs, stays))
    macs, params = (macs_was.total(), macs_now.total()), (params_was.total(), params_now.total())
    others = (macs_was[REST], macs_now[REST]), (params_was[REST], params_now[REST])
    return Changes(about.name, made.name, macs, params, tuple(found), others)


def _layers(model: nn.Module, macs: Mapping[str, int]) -> dict[str, Tensor]:
    """Path of each layer → its weight; a parameter of another name that is multiplied by is one by itself."""
    matrices = {path: held for path, held in weights_of(model).items() if held.ndim > 1}
    return {
        path.removesuffix(".weight"): held
        for path, held in matrices.items()
        if path.endswith(".weight") or macs.get(path)
    }


def _owner(path: str, layers: Mapping[str, Tensor]) -> str:
    """The layer that a parameter is of, or of whose factors."""
    while path and path not in layers:
        path = path.rpartition(".")[0]
    return path or REST


def _counts(
    model: nn.Module, counts: Mapping[str, int], layers: Mapping[str, Tensor]
) -> tuple[Counter[str], Counter[str]]:
    """Macs and params of each layer, and of what is no layer's."""
    macs, params = Counter[str](), Counter[str]()
    for path, count in counts.items():
        macs[_owner(path, layers)] += count
    for path, held in weights_of(model).items():
        params[_owner(path, layers)] += held.numel()
    return macs, params


def _weights(model: nn.Module, layers: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """What is left of each layer: its weight, or those of its factors."""
    left: dict[str, list[Tensor]] = {path: [] for path in layers}
    for path, held in weights_of(model).items():
        if held.ndim > 1 and (owner := _owner(path, layers)):
            left[owner].append(held)
    return left


def _shape(dense: nn.Module, path: str, weights: Sequence[Tensor]) -> Pair:
    """Outputs and inputs of a layer, of factors those of the whole; none where it is gone."""
    if not weights:
        return 0, 0
    outputs, inputs = len(weights[-1]), weights[0].shape[1]
    turned = getattr(dict(dense.named_modules()).get(path), "transposed", False)
    return (inputs, outputs) if turned else (outputs, inputs)
