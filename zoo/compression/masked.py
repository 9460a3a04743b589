"""Masked: the dense model in which whoever reads a channel that is cut reads a zero instead.

That is what a cut must compute. Norms and means over channels are those of the channels that stay. Both are compared in
double precision, with other weights of the same shapes: layer scales near zero and fresh norms would hide a mistake.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from zoo.compression.cutting import Kept, Traced, rewritten
from zoo.compression.rules import CONTRACTIONS, STATISTICS
from zoo.compression.walk import argument

aten = torch.ops.aten


class Double(fx.Interpreter):
    """Runs a program in double precision whatever it was exported in."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation; the precision that it asks for becomes double, its device the CPU."""
        if target == aten._assert_tensor_metadata.default:
            return None

        def plain(value: Any) -> Any:
            if isinstance(value, torch.dtype) and value.is_floating_point:
                return torch.float64
            return torch.device("cpu") if isinstance(value, torch.device) else value

        args, kwargs = pytree.tree_map(plain, (args, kwargs))
        return super().call_function(target, args, kwargs)


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
        if not tensor.is_floating_point():
            other[path] = tensor.detach().cpu()
            continue
        t = tensor.detach().cpu().double()
        if t.numel() == max(t.shape, default=1) or float(t.abs().max()) < 1e-3:
            u = torch.rand(t.shape, generator=generator, dtype=t.dtype)
            t = t * (1 + u / 2) + u / 4
        other[path] = t
    return other


def run(
    program: ExportedProgram,
    paths: Mapping[Node, str],
    tensors: Mapping[str, Tensor],
    image: Tensor,
    how: fx.Interpreter,
) -> Tensor:
    """Run a program.

    Args:
        program: exported, or cut.
        paths: placeholder of the dense program → path of its tensor.
        tensors: path → tensor.
        image: a batch.
        how: its interpreter.

    Returns:
        What the model returns, several tensors end to end [n].
    """
    by_name = {node.name: path for node, path in paths.items()}
    names = [node.name for node in program.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        return flat(how.run(*[tensors[by_name[name]] if name in by_name else image for name in names]))


def flat(outputs: Any) -> Tensor:
    """All numbers that a model returned [n]."""
    return torch.cat([each.flatten() for each in pytree.tree_leaves(outputs) if isinstance(each, Tensor)])


Cut = Callable[[Mapping[str, Tensor], Tensor], Any]
"""Path → tensor of the narrowed model, a batch → what the cut returns for it."""


def check(
    traced: Traced, gone: Tensor, tensors: Mapping[str, Tensor], cut: Cut, image: Tensor, batches: Sequence[int]
) -> float:
    """Compare a cut with the masked dense model, for batches of some sizes.

    Args:
        traced: the dense program and its ids.
        gone: roots that are cut [k].
        tensors: of the dense model, by path.
        cut: runs the narrowed model with weights that it is given.
        image: of any batch size [B, C, H, W].
        batches: how many images at a time, 1 or 2.

    Returns:
        The largest difference as a share of the largest output; infinite where the cut doesn't run.
    """
    dense, kept, worst = perturbed({**traced.program.constants, **tensors}), Kept(traced, gone), 0.0
    narrowed = dense | {path: kept.compact(dense[path], traced.of(node)) for node, path in traced.paths.items()}
    images = torch.randn(2, *image.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for batch in (images[:count] for count in batches):
        expected = run(traced.program, traced.paths, dense, batch, Masked(kept))
        try:
            with torch.no_grad():
                found = flat(cut(narrowed, batch))
        except (RuntimeError, TypeError, ValueError, LookupError, AssertionError):
            return float("inf")
        if found.shape != expected.shape or not torch.isfinite(torch.stack([expected, found])).all():
            return float("inf")
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)))
    return worst
