"""A torch-dag checkpoint, config.dict.json and modules.pt → a graph and its tensors.

Vertices run in the order of the file; each reads vertices before it and has one module, or a graph of its own whose
inputs are the vertex's. A module that does nothing leaves no node, and the batch's size is nowhere fixed.

Source: torch_dag/core/dag_module.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import FOREIGN, CheckpointError, RepositoryError, StructureError, WeightsError, as_cause, first_line
from zoo.files import read_json
from zoo.hub.foreign import unpickle
from zoo.hub.foreign.torch_dag.blocks import BLOCK_CONVERTERS
from zoo.hub.foreign.torch_dag.leaves import LEAF_CONVERTERS
from zoo.hub.foreign.torch_dag.vertices import VERTEX_CONVERTERS, convert_vertex
from zoo.hub.foreign.torch_dag.writer import Value, Writer
from zoo.hub.foreign.unpickle import Record
from zoo.structure.graph.graph import MAX_NODES, Graph, check_graph
from zoo.structure.graph.ops import MODULES

CONFIG = "config.dict.json"
MODULES_FILE = "modules.pt"
CLASS = "DagModule"
MAX_NESTING = 8
WEIGHTED = {*MODULES, "parameter"} - {"dropout"}
NAMES = frozenset(
    {
        *LEAF_CONVERTERS,
        *BLOCK_CONVERTERS,
        *VERTEX_CONVERTERS,
        "torch.nn.modules.container.ModuleList",
        "timm.layers.format.Format",
        "timm.models.swin_transformer_v2_cr.window_partition",
        "timm.models.swin_transformer_v2_cr.window_reverse",
    }
)
"""All that may be named in a checkpoint's pickle."""


def read_checkpoint(folder: Path) -> tuple[Graph, dict[str, Tensor]]:
    """Read a checkpoint.

    Args:
        folder: holds the two files.

    Returns:
        The graph, and its tensors by the names that the model's state_dict has.

    Raises:
        CheckpointError: a file is missing or damaged, the pickle holds what may not be there, or the graph isn't
            understood.
    """
    try:
        return _read(folder)
    except (RepositoryError, StructureError, WeightsError) as error:
        raise CheckpointError(f"{folder} isn't imported: {error}") from as_cause(error)
    except FOREIGN as error:
        # Modules hold whatever the file says; what no check above foresaw is no reason to fail otherwise.
        said = f"a module isn't what its class is ({first_line(error)})"
        raise CheckpointError(f"{folder} isn't imported: {said}") from as_cause(error)


def _read(folder: Path) -> tuple[Graph, dict[str, Tensor]]:
    if not (folder / CONFIG).is_file():
        raise StructureError(f"it has no {CONFIG}: not a torch-dag checkpoint")
    config = read_json(folder / CONFIG)
    modules = unpickle.load_pickle(folder / MODULES_FILE, NAMES)
    if not isinstance(modules, Record) or modules.name != "torch.nn.modules.container.ModuleList":
        raise StructureError(f"{folder / MODULES_FILE} isn't a list of modules: not a torch-dag checkpoint")
    if (kind := config.get("class", CLASS)) != CLASS:  # which old files don't say
        raise StructureError(f"{folder / CONFIG}: class is {kind!r:.40}, expected {CLASS}: not a torch-dag checkpoint")
    writer = Writer()
    inputs, value = _graph(writer, config, list(modules.modules.values()), None, "", 0)
    outputs = (value,) if isinstance(value, str) else value
    if not isinstance(outputs, tuple):
        raise StructureError(f"{folder / CONFIG}: the output is a shape, expected a tensor")
    graph = Graph(tuple(inputs), tuple(writer.nodes), outputs)
    check_graph(graph, str(folder / CONFIG))
    if through := [name for name in outputs if name in inputs]:
        raise StructureError(f"{folder / CONFIG}: the output {through[0]!r:.60} is an input: nothing is computed")
    if _reached(graph).isdisjoint({node.name for node in graph.nodes if node.op in WEIGHTED}):
        raise StructureError(f"{folder / CONFIG}: the output depends on none of the weights")
    return graph, writer.tensors


def _reached(graph: Graph) -> set[str]:
    """What the outputs depend on."""
    reached = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.name in reached:
            reached.update(node.inputs)
    return reached


def _graph(
    writer: Writer, config: Any, modules: list[Any], given: list[Value] | None, prefix: str, depth: int
) -> tuple[list[str], Value]:
    """Write one graph, at the top or within a vertex; returns its inputs' names and what its output is worth."""
    where = prefix or CONFIG
    vertices = [value for key, value in config.items() if key.isdigit()] if isinstance(config, Mapping) else []
    output = config.get("output_index") if isinstance(config, Mapping) else None
    writer.vertices += len(vertices)
    if not vertices or writer.vertices > MAX_NODES or depth > MAX_NESTING:
        counted = f"{len(vertices)} vertices of {writer.vertices} so far"
        raise StructureError(f"{where} has {counted}, nested {depth} deep: not a torch-dag graph")
    if type(output) is not int or not 0 <= output < len(vertices):
        raise StructureError(f"{where}: output_index is {output!r:.40}, expected 0 to {len(vertices) - 1}")
    values: list[Value] = []
    inputs: list[str] = []
    for number, vertex in enumerate(vertices):
        here = f"{where}: vertex {number}"
        name = _name(vertex, prefix, here)
        if vertex.get("type") == "input":
            values.append(name if given is None else _given(given, len(inputs), here))
            inputs.append(name)
            continue
        read_from = _predecessors(vertex, number, values, here)
        if vertex.get("is_atomic"):
            values.append(convert_vertex(writer, name, _module(vertex, modules, here), read_from))
        else:
            _, value = _graph(writer, vertex.get("module_dict"), modules, read_from, f"{name}_", depth + 1)
            values.append(value)
    return inputs, values[output]


def _name(vertex: Any, prefix: str, where: str) -> str:
    name = vertex.get("name") if isinstance(vertex, Mapping) else None
    if not isinstance(name, str) or not name or len(name) > 200:
        raise StructureError(f"{where} has no name")
    return re.sub(r"\W", "_", f"{prefix}{name}" if not name[0].isdigit() else f"{prefix}_{name}")


def _given(given: list[Value], number: int, where: str) -> Value:
    if number >= len(given):
        raise StructureError(f"{where} is input {number + 1}, {len(given)} are given")
    return given[number]


def _predecessors(vertex: Mapping[str, Any], number: int, values: list[Value], where: str) -> list[Value]:
    indices = vertex.get("predecessor_indices")
    if not isinstance(indices, list) or len(indices) > MAX_NODES:
        raise StructureError(f"{where}: predecessor_indices isn't a list")
    for index in indices:
        if type(index) is not int or not 0 <= index < number:
            raise StructureError(f"{where} reads vertex {index!r:.40}, expected one before it, 0 to {number - 1}")
    return [values[index] for index in indices]


def _module(vertex: Mapping[str, Any], modules: list[Any], where: str) -> Record:
    index = vertex.get("module_index")
    if type(index) is not int or not 0 <= index < len(modules):
        raise StructureError(f"{where}: module_index is {index!r:.40}, expected 0 to {len(modules) - 1}")
    if not isinstance(modules[index], Record):
        raise StructureError(f"{where}: entry {index} of {MODULES_FILE} isn't a module")
    module: Record = modules[index]
    return module
