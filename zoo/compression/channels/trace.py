"""Trace: what is known of an exported program while ids are propagated through it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from zoo.compression.channels.ids import Axes, Ids, NotUnderstood, Vector

_WEIGHT = re.compile(r".+\.weight(_[ih]h_l\d+(_reverse)?)?")  # of a layer, or of one in a recurrent layer

Layer = tuple[Tensor, str]
"""Channels and the path of the layer that does something with them."""


class Walk:
    """Ids of every value, and what rules note down on the way.

    Args:
        program: exported.
        model: the module that it was exported from.
        choices: of a view that splits channels along several dimensions, which of them keeps its ids (the how maniest).
    """

    def __init__(self, program: ExportedProgram, model: nn.Module, choices: Mapping[str, int]) -> None:
        self.program, self.choices, self.ids = program, choices, Ids()
        self.values: dict[Node, Any] = {}
        self.paths = parameter_paths(program, model)
        self.held: dict[str, Axes] = {}
        self.images = {n for n in program.graph.find_nodes(op="placeholder") if n not in self.paths}
        self.constants: dict[Node, Tensor] = {}
        self.writers: list[Layer] = []
        self.readers: list[Layer] = []
        self.depthwise: list[Layer] = []
        self.groups: dict[str, tuple[int, int]] = {}  # weight of a grouped convolution → groups, channels each reads
        self.owners: dict[Node, str] = {}
        self.macs: list[tuple[int, list[Vector]]] = []
        self.sums: list[Tensor] = []  # channels of sums of what two layers write
        self.inner: list[Vector] = []  # dimensions that a product or a mean runs over
        self.splits: list[tuple[str, Tensor, int]] = []  # view, what it kept, how many choices it had

    def batch(self) -> int:
        """Images in the batch that was exported."""
        placeholders = self.program.graph.find_nodes(op="placeholder")
        return next(self.shape(node)[0] for node in placeholders if node not in self.paths)

    def seed(self, node: Node) -> None:
        """Give a parameter or buffer fresh ids; the image has none."""
        if node not in self.paths:
            self.values[node] = [None] * len(node.meta["val"].shape)
            return
        path = self.paths[node]
        if path not in self.held:
            self.held[path] = [self.ids.fresh(int(size)) for size in node.meta["val"].shape]
        self.values[node] = self.held[path]

    def visit(self, node: Node, apply: Any) -> None:
        """Pass one node."""
        if node.op == "placeholder":
            self.seed(node)
        elif node.op == "call_function":
            if any(self.depends_on_image(each) for each in node.all_input_nodes):
                self.images.add(node)
            before = len(self.macs)
            self.values[node] = apply(self, node) if _has_tensor(node) or self.tensors(node) else None
            if node in self.images:  # others are counted once, however many images there are
                batch = self.batch()
                self.macs[before:] = [(count // batch, axes) for count, axes in self.macs[before:]]
        elif node.op == "output":
            for each in self.tensors(node):
                self.freeze(each, "an output of the model")

    def axes(self, node: Any) -> Axes:
        """Ids of a tensor."""
        value = self.values.get(node)
        return value if value is not None else [None] * len(self.shape(node))

    def shape(self, node: Any) -> list[int]:
        """Sizes of a tensor for the batch that was exported.

        Raises:
            NotUnderstood: the operation gives several, or none.
        """
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            raise NotUnderstood(node.name)
        return sizes(value)

    def tensors(self, node: Node) -> list[Node]:
        """The inputs that are tensors."""
        return [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), Tensor)]

    def freeze(self, node: Node, reason: str) -> None:
        """Freeze all dimensions of a value."""
        value = self.values.get(node) or []
        for axes in value if value and isinstance(value[0], list) else [value]:
            for vector in axes:
                self.ids.freeze(vector, reason)

    def frozen_like(self, node: Node) -> Any:
        """Axes of a result of which nothing can be cut."""
        value = node.meta.get("val")
        if isinstance(value, list | tuple):
            return [[None] * getattr(each, "ndim", 0) for each in value]
        return [None] * getattr(value, "ndim", 0)

    def depends_on_image(self, node: Node) -> bool:
        """Whether a value is another one for another image."""
        return node in self.images

    def name(self, node: Node) -> str:
        """An operation's short name."""
        return str(node.target).removeprefix("aten.").rpartition(".")[0]

    def met(self, *nodes: Node) -> str:
        """Why two dimensions that are one may be frozen: one of them comes from something that can't be cut."""
        names = [self.paths.get(node, "") for node in nodes]
        return f"meets something that can't be cut at {next((n for n in names if n), nodes[0].name)}"

    def constant(self, node: Node) -> Tensor:
        """The value of what follows from buffers alone.

        Raises:
            NotUnderstood: it depends on the image, or on values that aren't there.
        """
        if node not in self.constants:
            if node in self.images:
                raise NotUnderstood(node.name)
            if node.op == "placeholder":
                value = _held(self.program, node)
            else:
                args, kwargs = pytree.tree_map_only(Node, self.constant, (node.args, node.kwargs))
                value = cast(Any, node.target)(*args, **kwargs)
            if isinstance(value, Tensor) and value.is_meta:
                raise NotUnderstood(node.name)
            self.constants[node] = value.cpu() if isinstance(value, Tensor) else value
        return self.constants[node]

    def bias(self, node: Node, position: int, vector: Vector) -> Vector:
        """Cut a bias, or another argument with one value a channel, with its channels."""
        each = node.args[position] if len(node.args) > position else None
        if not isinstance(each, Node) or self.shape(each)[0] == 1:
            return vector
        return self.ids.join(vector, self.axes(each)[0], self.met(each))

    def layer(
        self, node: Node, weight: Node, written: Vector, read: Vector, groups: tuple[int, int] | None = None
    ) -> None:
        """Note who writes and reads channels, and of a grouped convolution its groups and the channels of one."""
        owner = self._owner(node, weight, groups)
        if written is not None and owner:
            self.writers.append((written, owner))
        self.inner.append(read)
        if read is not None and _WEIGHT.fullmatch(self.paths.get(weight, "")):
            self.readers.append((read, owner))

    def grouped(self, node: Node, weight: Node, written: Vector, groups: tuple[int, int]) -> None:
        """Note a convolution that takes each channel, or each group of them, by itself."""
        owner = self._owner(node, weight, groups)
        if written is not None and owner:
            self.depthwise.append((written, owner))

    def _owner(self, node: Node, weight: Node, groups: tuple[int, int] | None) -> str:
        origin = weight
        while origin not in self.paths and self.tensors(origin):
            origin = self.tensors(origin)[0]
        path = self.paths.get(origin, "")
        if groups is not None:
            self.groups[path] = groups
        self.owners[node] = owner = path.rpartition(".")[0]
        return owner

    def normalised(self) -> dict[str, str]:
        """Layers whose output a batch norm takes, and nobody else: the layer's path → that of the running mean."""
        calls = Counter(self.owners.values())
        means = {}
        for norm in self.program.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
            x, mean = norm.args[0], norm.args[3]
            alone = x in self.owners and calls[self.owners[x]] == len(_takers(x)) == 1
            if alone and mean in self.paths and len(mean.users) == 1 and not argument(norm, "training", 5, False):
                means[self.owners[x]] = self.paths[mean]
        return means

    def count(self, node: Node, axes: Sequence[Vector], inner: int) -> None:
        """Note multiply-accumulates: one for each value of the result and each that is summed over."""
        self.macs.append((prod(self.shape(node)) * inner, list(axes)))

    def count_exactly(self, count: int, axes: Sequence[Vector]) -> None:
        """Note multiply-accumulates."""
        self.macs.append((count, list(axes)))


_SIZES = (torch.ops.aten.sym_size.int, torch.ops.aten._assert_tensor_metadata.default)


def _takers(node: Node) -> list[Node]:
    """Who reads more of a value than its size."""
    return [user for user in node.users if user.target not in _SIZES]


def parameter_paths(program: ExportedProgram, model: nn.Module) -> dict[Node, str]:
    """Path of the tensor that each placeholder stands for; one path for all names of one tensor."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first = {id(tensor): path for path, tensor in reversed(named)}
    canonical = {path: first[id(tensor)] for path, tensor in named}
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    targets = {
        spec.arg.name: canonical.get(spec.target or "", spec.target or "")
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds
    }
    return {n: targets[n.name] for n in program.graph.find_nodes(op="placeholder") if n.name in targets}


def _held(program: ExportedProgram, node: Node) -> Tensor:
    target = next(s.target for s in program.graph_signature.input_specs if s.arg.name == node.name)
    value = program.state_dict.get(target, program.constants.get(target))
    if not isinstance(value, Tensor):
        raise NotUnderstood(node.name)
    return value.detach()


def _has_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value))


def sizes(tensor: Tensor) -> list[int]:
    """Sizes of a traced tensor, for the batch that it was traced with."""
    dims: list[Any] = list(tensor.shape)  # torch calls them int, and some are symbols
    return [int(size.node.hint) if isinstance(size, torch.SymInt) else int(size) for size in dims]  # type: ignore[arg-type]


def argument(node: Node, name: str, position: int, default: Any) -> Any:
    """An argument that may be given by position, by name or not at all."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
