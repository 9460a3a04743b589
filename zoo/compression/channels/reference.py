"""Reference: the dense model in which whoever reads a channel that is cut reads a zero instead.

That is what a cut must compute. Norms and means over channels are those of the channels that stay. Both are compared in
double precision, with other weights of the same shapes: layer scales near zero and fresh norms would hide a mistake.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import Node
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from zoo.compression.channels.cutting import Kept, rewritten
from zoo.compression.channels.rules import CONTRACTIONS, STATISTICS
from zoo.compression.channels.trace import argument
from zoo.errors import FOREIGN
from zoo.measurement.divergence import apart, leaves
from zoo.measurement.macs import noise_like

aten = torch.ops.aten


class Double(fx.Interpreter):
    """Runs a program in double precision whatever it was exported in."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation; the precision that it asks for becomes double, its device the CPU."""
        if target == aten._assert_tensor_metadata.default:
            return None

        args, kwargs = pytree.tree_map(_double, (args, kwargs))
        return super().call_function(target, args, kwargs)


class DoubleCalls(TorchFunctionMode):
    """The same for the forward pass of a module: rotations that are asked for in single precision, say."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(_double, (args, kwargs or {}))
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


def _double(value: Any) -> Any:
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return torch.device("cpu") if isinstance(value, torch.device) else value


class Masked(Double):
    """Runs a dense program with masks.

    Args:
        kept: what stays.
    """

    def __init__(self, kept: Kept) -> None:
        super().__init__(kept.traced.program.graph_module)
        self.kept = kept

    def run_node(self, node: Node) -> Any:
        """Run one node; its inputs are zeroed, or without what is cut where they are measured."""
        if node.target in CONTRACTIONS:
            return self._run(node.target, node.args, node.kwargs, self._zeroed)
        if node.target in STATISTICS and not (_is_batch_norm(node) and not argument(node, "training", 5, False)):
            return self._spread(node, self._run(*rewritten(self.kept, node), self._compact))
        return super().run_node(node)

    def _run(self, target: Any, args: Any, kwargs: Any, seen: Callable[[Node], Any]) -> Any:
        args, kwargs = pytree.tree_map_only(Node, seen, (args, kwargs))
        return self.call_function(target, args, kwargs)

    def _zeroed(self, node: Node) -> Any:
        value = self.env[node]
        for dim, mask in self.kept.masks(self.kept.traced.of(node)) if isinstance(value, Tensor) else ():
            gone = ~mask[: value.shape[dim]].view([-1 if d == dim else 1 for d in range(value.ndim)])
            value = value.masked_fill(gone, 0)
        return value

    def _compact(self, node: Node) -> Any:
        value = self.env[node]
        return self.kept.compact(value, self.kept.traced.of(node)) if isinstance(value, Tensor) else value

    def _spread(self, node: Node, result: Any) -> Any:
        for dim, mask in self.kept.masks(self.kept.traced.of(node)) if isinstance(result, Tensor) else ():
            shape = [len(mask) if d == dim else size for d, size in enumerate(result.shape)]
            result = result.new_zeros(shape).index_copy(dim, mask.nonzero()[:, 0], result)
        return result


def _is_batch_norm(node: Node) -> bool:
    return node.target == aten.batch_norm.default


def perturbed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Other values of the same shapes, in double precision: t·(1 + u/2) + u/4 where t is a vector or near zero.

    Args:
        tensors: path → tensor; whole numbers stay.
    """
    generator = torch.Generator().manual_seed(0)
    other = {}
    for path, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if not tensor.is_floating_point():
            other[path] = tensor
            continue
        t = tensor.double()
        if t.numel() == max(t.shape, default=1) or max(abs(float(end)) for end in tensor.aminmax()) < 1e-3:
            u = torch.rand(t.shape, generator=generator, dtype=t.dtype)
            t = t * (1 + u / 2) + u / 4
        other[path] = t
    return other


def run_program(
    program: ExportedProgram,
    paths: Mapping[Node, str],
    tensors: Mapping[str, Tensor],
    image: Tensor,
    how: fx.Interpreter,
) -> Any:
    """Run a program.

    Args:
        program: exported, or cut.
        paths: placeholder of the dense program → path of its tensor.
        tensors: path → tensor.
        image: a batch.
        how: its interpreter.

    Returns:
        What the model returns.
    """
    by_name = {node.name: path for node, path in paths.items()}
    names = [node.name for node in program.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        return how.run(*[tensors[by_name[name]] if name in by_name else image for name in names])


Cut = Callable[[Mapping[str, Tensor], Tensor], Any]
"""Path → tensor of the narrowed model, a batch → what the cut returns for it."""


def compare(kept: Kept, tensors: Mapping[str, Tensor], cut: Cut, image: Tensor) -> float:
    """Compare a cut with the masked dense model.

    Of two images together, the first must give what the masked dense model gives for it, the second what it gives
    alone: one pass of one image through the dense model, which is the dearest, and batches of one and of two. Where an
    output has no dimension for images, the dense model is given both batches too.

    Args:
        kept: what stays.
        tensors: of the dense model, by path.
        cut: runs the narrowed model with weights that it is given.
        image: of any batch size [B, C, H, W].

    Returns:
        The largest difference as a share of the dense model's largest output; infinite where the cut doesn't run.
    """
    traced = kept.traced
    dense = perturbed({**traced.program.constants, **tensors})
    narrowed = kept.select(dense)
    images = noise_like(image.double() if image.is_floating_point() else image, 2)
    try:
        with torch.no_grad():
            together, alone = leaves(cut(narrowed, images)), leaves(cut(narrowed, images[1:]))
    except FOREIGN:
        return float("inf")

    def expected(batch: Tensor) -> list[Tensor]:
        return leaves(run_program(traced.program, traced.paths, dense, batch, Masked(kept)))

    pairs: tuple[tuple[Sequence[Tensor], Sequence[Tensor]], ...]
    halves = [each for both, one in zip(together, alone, strict=False) if (each := _halves(both, one))]
    if len(halves) == len(together) == len(alone):
        first, second = zip(*halves, strict=True)
        pairs = (first, expected(images[:1])), (second, alone)
    else:
        pairs = (together, expected(images)), (alone, expected(images[1:]))
    if not all(each.isfinite().all() for pair in pairs for some in pair for each in some):  # equal, and yet no answer
        return float("inf")
    return max(apart(*pair) for pair in pairs)


def _halves(both: Tensor, one: Tensor) -> tuple[Tensor, ...] | None:
    """What is of the first of two images and what of the second, where a dimension tells them apart."""
    if both.ndim != one.ndim:
        return None
    longer = [dim for dim, (two, single) in enumerate(zip(both.shape, one.shape, strict=True)) if two != single]
    if len(longer) != 1 or both.shape[longer[0]] != 2 * one.shape[longer[0]]:
        return None
    return both.tensor_split(2, longer[0])
