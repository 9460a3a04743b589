"""Tracing: a model's forward pass as a program of ATen operations."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from zoo.errors import in_one_line
from zoo.structure.graph.drops import shown

DIMS = (0, 2, 3)  # of images, that a graph leaves open where the model does
ANY_SIZE = 20.0  # seconds of CPU that this may take: sizes that are symbols can take hours


def export(model: nn.Module, image: Tensor, dims: Sequence[int] = (0,)) -> ExportedProgram:
    """Trace a model in eval mode to ATen operations, with any batch size where the model allows it.

    What drops whole branches leaves a dropout that isn't at work, which tells where it was.

    Args:
        model: the model; its mode is left as it was.
        image: one batch that it takes, [B, C, H, W], B ≥ 2.
        dims: of the images that may have other sizes, as far as the model allows it.

    Returns:
        The program, not decomposed, without regions of autocast or no_grad, and without assertions: what was true of
        the sizes that were traced needn't be true of others that the model takes.

    Raises:
        StructureError: the model can't be exported, or sizes that are left open take too long.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        with in_one_line(f"{type(model).__name__} can't be exported"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The tensor attribute")  # caches, which export restores
            with shown(model, ANY_SIZE if len(dims) > 1 else math.inf), _quiet():
                program = torch.export.export(
                    *(model.eval(), (image,)),
                    dynamic_shapes=(dict.fromkeys(dims, Dim.AUTO),),
                    strict=False,
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
            _inline(program.graph_module)
            _unassert(program.graph_module.graph)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return program


def _inline(module: fx.GraphModule) -> None:
    """Put the body of each region (autocast, no_grad) where the region is called."""
    graph = module.graph
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        at, body = next(
            (i, arg) for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr"
        )
        body = getattr(module, str(body.target))
        _inline(body)
        placeholders = body.graph.find_nodes(op="placeholder")
        with graph.inserting_before(node):
            values: Any = graph.graph_copy(body.graph, dict(zip(placeholders, node.args[at + 1 :], strict=True)))
        for user in list(node.users):
            user.replace_all_uses_with(values[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
    graph.lint()


def _unassert(graph: fx.Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten._assert_scalar.default):
        graph.erase_node(node)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own report of what can't be exported, which is in the error."""
    from torch.fx.experimental import symbolic_shapes  # with sympy, which whoever only loads a model does without

    level = symbolic_shapes.log.level
    symbolic_shapes.log.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        symbolic_shapes.log.setLevel(level)
