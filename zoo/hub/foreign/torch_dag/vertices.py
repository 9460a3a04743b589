"""How each class of a checkpoint's modules becomes nodes. One function a class: `VERTEX_CONVERTERS`, a closed list.

Attributes were written by torch-dag, torch 2.1 and timm 0.9; widths are taken from the weights all the same. Where
torch-dag's own forward has a quirk, the node has it too, and the comment says so.

Source: torch_dag/structured_modules.py; timm 0.9.12 for its own classes.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from zoo.errors import StructureError
from zoo.hub.foreign.torch_dag import blocks
from zoo.hub.foreign.torch_dag.leaves import LEAF_CONVERTERS, leaf
from zoo.hub.foreign.torch_dag.writer import Shape, Value, Writer, attribute, required_tensor, two_ints, weights
from zoo.hub.foreign.unpickle import Global, Record

Convert = Callable[[Writer, str, Record, list[Value]], Value]


def convert_vertex(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    """Write what one vertex does.

    Args:
        writer: takes the nodes.
        name: the vertex's.
        record: its module.
        inputs: what its predecessors are worth.

    Returns:
        What the vertex is worth.

    Raises:
        StructureError: a class or a combination that isn't known.
    """
    if record.name in LEAF_CONVERTERS:
        return leaf(writer, name, record, _one(name, inputs))
    if record.name in blocks.BLOCK_CONVERTERS:
        return blocks.BLOCK_CONVERTERS[record.name](writer, name, record, *_names(name, inputs)[:2])
    if record.name not in VERTEX_CONVERTERS:
        raise StructureError(f"{name} is a {record.name}, which isn't known")
    return VERTEX_CONVERTERS[record.name](writer, name, record, inputs)


def _one(name: str, inputs: list[Value]) -> str:
    if not inputs or not isinstance(inputs[0], str):
        raise StructureError(f"{name}: expected one tensor as input")
    return inputs[0]


def _names(name: str, inputs: list[Value]) -> list[str]:
    if not inputs or not all(isinstance(value, str) for value in inputs):
        raise StructureError(f"{name}: expected tensors as inputs")
    return [value for value in inputs if isinstance(value, str)]


def _two(op: str) -> Convert:
    def written(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
        names = _names(name, inputs)
        # One is left where a whole branch was cut away; those beyond the second are ignored.
        return names[0] if len(names) == 1 else writer.function(op, name, *names[:2])

    return written


def _concat(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    names = _names(name, inputs)
    return names[0] if len(names) == 1 else writer.function("concat", name, *names, dim=attribute(record, "dim", int))


def _with(op: str, renamed: Mapping[str, str] | None = None, **kinds: Any) -> Convert:
    """A function whose attributes have torch's own names, but for those that are renamed."""
    names = renamed or {}

    def written(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
        values = {names.get(key, key): _plain(attribute(record, key, kind)) for key, kind in kinds.items()}
        return writer.function(op, name, _one(name, inputs), **values)

    return written


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _extract(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    index = attribute(record, "index", int)
    if inputs and isinstance(inputs[0], Shape):
        return writer.function("size", name, inputs[0].of, dim=index)
    return writer.function("item", name, _one(name, inputs), index=index)


def _shape(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    return Shape(_one(name, inputs))


def _merge(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    return tuple(_names(name, inputs))


def _slice(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    spec = attribute(record, "slice_spec", (slice, tuple))
    items = list(spec) if isinstance(spec, tuple) else [spec]
    if len(items) == 4:
        items[3] = items[2]  # as the source does it, for both of the last axes
    return writer.function("slices", name, _one(name, inputs), spec=[_index(name, item) for item in items])


def _index(name: str, item: Any) -> Any:
    if isinstance(item, slice):
        return [item.start, item.stop, item.step]
    if item is Ellipsis:
        return "..."
    if item is None or type(item) is int:
        return item
    raise StructureError(f"{name}: {item!r:.60} can't index a tensor")


def _reshape(batch: bool) -> Convert:
    def written(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
        shape = list(attribute(record, "target_shape", (list, tuple)))
        return writer.function("reshape", name, _one(name, inputs), shape=["batch", *shape] if batch else shape)

    return written


def _reshape_by(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    """The source's small language of shapes; it remembers the first batch's size, which is not to be copied."""
    x, *sizes = _names(name, inputs)
    spec = attribute(record, "spec", (str, dict))
    if isinstance(spec, dict):
        shape = ["input" if item == "predecessor" else item for item in spec.values()]
        return writer.function("reshape", name, x, *sizes, shape=shape)
    known = re.sub(r"\s", "", spec)
    if known == "(B,C,H,W)->(B,H*W,C)":  # a plain reshape, no transposition
        channels = writer.function("size", f"{name}.channels", x, dim=1)
        return writer.function("reshape", name, x, channels, shape=["batch", -1, "input"])
    if known == "(B,N,C)->(B,N,target)":
        tokens = writer.function("size", f"{name}.tokens", x, dim=1)
        target = list(attribute(record, "target_shape", (list, tuple)))
        return writer.function("reshape", name, x, tokens, shape=["batch", "input", *target])
    raise StructureError(f"{name}: the reshape {spec!r:.60} isn't known")


def _expand(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    x, *sizes = _names(name, inputs)
    shape = ["input"] * len(sizes) + list(attribute(record, "sizes", (list, tuple)))
    return writer.function("expand", name, x, *sizes, shape=shape)


def _token(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    token = writer.parameter(f"{name}.token", required_tensor(record, "token").reshape(1, 1, -1))
    return writer.function("prepend", f"{name}.tokens", token, _one(name, inputs))


def _constant(key: str) -> Convert:
    def written(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
        if id(record) not in writer.modules:
            write = writer.parameter if key == "param" else writer.buffer
            held = weights(record).get(key, record.state.get(key))
            if not isinstance(held, Tensor):
                raise StructureError(f"{name}: {key} is {held!r:.60}, expected a tensor")
            writer.modules[id(record)] = write(name, held)
        return writer.modules[id(record)]

    return written


def _affine(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    held = [writer.parameter(f"{name}.{key}", value) for key, value in weights(record).items()]
    return writer.function("channel_affine", f"{name}.scaled", _one(name, inputs), *held)


def _layer_scale(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    gamma = writer.parameter(f"{name}.gamma", required_tensor(record, "gamma"))
    return writer.function("mul", f"{name}.scaled", _one(name, inputs), gamma)


def _matmul(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    x, y = (_names(name, inputs) * 2)[:2]  # a repeated input is stored once
    transposed, normalized = (record.state.get(key) is True for key in ("transpose", "normalize"))
    if transposed and normalized:
        return writer.function("scores", name, x, y)
    if transposed:
        y = writer.function("transpose", f"{name}.transposed", y, dim0=1, dim1=2)
    product = writer.function("matmul", name, x, y)
    if normalized:
        raise StructureError(f"{name}: a normalised product without a transposition isn't known")
    return product


def _wrapped(writer: Writer, name: str, record: Record, inputs: list[Value]) -> Value:
    """A function that the source pickled by its name; two are known, nothing is imported."""
    function, spec = record.state.get("function"), attribute(record, "spec", dict)
    sizes = [two_ints(list(item.values()), name) for item in spec.values() if isinstance(item, dict)]
    swin = "timm.models.swin_transformer_v2_cr."
    match (function.name if isinstance(function, Global) else ""), sizes:
        case known, [window] if known == f"{swin}window_partition":
            return writer.function("window_partition", name, _one(name, inputs), window_size=window)
        case known, [window, image] if known == f"{swin}window_reverse":
            return writer.function("window_reverse", name, _one(name, inputs), window_size=window, img_size=image)
    raise StructureError(f"{name}: the function {function!r:.80} isn't known: refused")


_NUMBER = (int, float)
_DIM = (int, list, tuple)
_STRUCTURED: Mapping[str, Convert] = {
    "AddModule": _two("add"),
    "SubModule": _two("sub"),
    "MulModule": _two("mul"),
    "ConcatModule": _concat,
    "ChunkModule": _with("chunk", chunks=int, dim=int),
    "TensorExtractorModule": _extract,
    "TensorMergerModule": _merge,
    "SliceModule": _slice,
    "PermuteModule": _with("permute", {"perm": "dims"}, perm=(list, tuple)),
    "TransposeModule": _with("transpose", dim0=int, dim1=int),
    "FlattenModule": _with("flatten", start_dim=int, end_dim=int),
    "MeanModule": _with("mean", dim=_DIM, keepdim=bool),
    "GlobalMeanPool2DModule": _with("mean", dim=_DIM, keepdim=bool),
    "ReshapeModule": _reshape(batch=True),
    "ReshapeModuleV2": _reshape(batch=False),
    "ReshapeWithSpecModule": _reshape_by,
    "ReshapeWithSpecModuleV2": _reshape_by,
    "GetShapeModule": _shape,
    "GetShapeModuleV2": _shape,
    "ExpandTokenModule": _expand,
    "AuxiliaryTokenModule": _token,
    "ParameterModule": _constant("param"),
    "ArgModule": _constant("arg"),
    "ChannelAffineModule": _affine,
    "ScalarMul": _with("scale", {"scalar": "other"}, scalar=_NUMBER),
    "PowerModule": _with("pow", {"pow": "exponent"}, pow=_NUMBER),
    "TfMatmulModule": _matmul,
    "RollModule": _with("roll", shifts=_DIM, dims=_DIM),
    "AutoWrapFunctionModule": _wrapped,
}
VERTEX_CONVERTERS: Mapping[str, Convert] = {
    **{f"torch_dag.structured_modules.{name}": convert for name, convert in _STRUCTURED.items()},
    "timm.models.vision_transformer.LayerScale": _layer_scale,
}
