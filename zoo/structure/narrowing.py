"""Narrowing: fewer channels of a layer, fewer heads of an attention module, a smaller tensor.

Of a model with values the first channels are kept; on the meta device only shapes change, and whoever cut the values
assigns them afterwards. `followed` keeps true what the model says of its own widths (`num_features`, `feature_info`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import StructureError
from zoo.structure import blocks

_FIRST = "weight_ih_l0"  # and its reverse: what reads the inputs of a recurrent layer
_FIGURES = ("num_features", "head_hidden_size", "embed_dim", "in_features", "hidden_size")  # a model's, of its widths


def count(asked: int | None, available: int, what: str) -> int:
    """A size that is asked for, or all of it.

    Raises:
        StructureError: it isn't a number from 1 to what is available.
    """
    if asked is None:
        return available
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= available:
        raise StructureError(f"{what} is {asked}, expected 1 to {available}")
    return asked


def width_of(module: nn.Module, name: str, dim: int, size: int) -> tuple[str, int] | None:
    """What a dimension of a layer's tensor says of its width.

    Args:
        module: the layer.
        name: of the tensor.
        dim: of the tensor.
        size: that the dimension is to have.

    Returns:
        outputs or inputs, and how many; None where the module is no layer with a width of its own.
    """
    if isinstance(module, nn.RNNBase):
        if dim == 1 and name.startswith(_FIRST):
            return "inputs", size
        return "outputs", size * module.hidden_size // module.get_parameter(name).shape[dim]  # of gates or directions
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return "inputs" if dim == 1 else "outputs", size
    return ("outputs", size) if output_width(module) else None


def output_width(module: nn.Module) -> int:
    """How many channels a layer's own tensors put out; 0 where it is no layer with a width of its own."""
    if isinstance(module, nn.RNNBase):
        return (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return module.weight.shape[0]
    return _scale_width(_held(module))


def _held(module: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in (*module._parameters.items(), *module._buffers.items()) if t is not None and t.ndim > 0}


def _scale_width(held: Mapping[str, Tensor]) -> int:
    """How many channels a norm or scale has: tensors of one dimension each (others being 1), equally long; else 0."""
    longest = {tensor.numel() for tensor in held.values()}
    return longest.pop() if len(longest) == 1 and all(max(t.shape) == t.numel() for t in held.values()) else 0


def narrow_layer_(module: nn.Module, path: str, outputs: int | None, inputs: int | None, groups: int | None) -> None:
    """Keep the first channels of a layer that holds its tensors itself.

    Args:
        module: a linear layer, a convolution, a recurrent layer, a norm or a scale.
        path: its place, for the message.
        outputs: channels out; of a recurrent layer its hidden units, of a norm or scale its channels.
        inputs: channels in; a depthwise convolution's follow from `outputs`, and the reverse.
        groups: of a convolution or group norm; a depthwise convolution's follow from its channels.

    Raises:
        StructureError: the layer hasn't that many, or no such width.
    """
    held = _held(module)
    projected = isinstance(module, nn.RNNBase) and module.proj_size > 0
    if not held or projected or isinstance(module, nn.modules.conv._ConvTransposeNd):
        raise StructureError(f"narrow: {path} is a {type(module).__name__}, which has no width that can be narrowed")
    if isinstance(module, nn.modules.conv._ConvNd):
        _narrow_convolution_(module, held, path, outputs, inputs, groups)
    elif isinstance(module, nn.RNNBase):
        _narrow_recurrent_(module, held, path, outputs, inputs)
    elif not isinstance(module, nn.Linear) and (available := _scale_width(held)):
        count(inputs, 1, f"narrow: {path}.inputs")
        kept = torch.arange(count(outputs, available, f"narrow: {path}.outputs"), device="cpu")
        for name, tensor in held.items():
            _select_(module, name, {tensor.shape.index(available): kept})
    else:
        shape = held["weight"].shape if "weight" in held else next(iter(held.values())).shape
        rows = count(outputs, shape[0], f"narrow: {path}.outputs")
        columns = count(inputs, shape[1] if len(shape) > 1 else 1, f"narrow: {path}.inputs")
        _select_rows_(module, held, rows, columns)
    if groups is not None and isinstance(module, nn.GroupNorm):
        module.num_groups = count(groups, module.num_groups, f"narrow: {path}.groups")
    blocks.refresh_(module)


def _narrow_convolution_(
    module: nn.modules.conv._ConvNd,
    held: Mapping[str, Tensor],
    path: str,
    outputs: int | None,
    inputs: int | None,
    groups: int | None,
) -> None:
    depthwise = module.groups == module.in_channels > 1 and groups is None
    each = module.out_channels // module.in_channels if depthwise else 1
    if depthwise and inputs is None:
        inputs = None if outputs is None else count(outputs, module.out_channels, f"narrow: {path}.outputs") // each
    inputs = count(inputs, module.in_channels, f"narrow: {path}.inputs")
    if depthwise:
        groups, outputs = inputs, inputs * each if outputs is None else outputs
    outputs = count(outputs, module.out_channels, f"narrow: {path}.outputs")
    groups = count(groups, module.groups, f"narrow: {path}.groups")
    if inputs < groups or inputs % groups or outputs % groups or inputs // groups > module.weight.shape[1]:
        raise StructureError(f"narrow: {path} has {inputs} inputs and {outputs} outputs for {groups} groups")
    _select_rows_(module, held, outputs, inputs // groups)
    module.groups, module.in_channels, module.out_channels = groups, inputs, outputs


def _narrow_recurrent_(
    module: nn.RNNBase, held: Mapping[str, Tensor], path: str, outputs: int | None, inputs: int | None
) -> None:
    """Keep the first units in every gate, layer and direction."""
    units = torch.arange(count(outputs, module.hidden_size, f"narrow: {path}.outputs"), device="cpu")
    read = torch.arange(count(inputs, module.input_size, f"narrow: {path}.inputs"), device="cpu")
    for name, tensor in held.items():
        kept = {}
        for dim, size in enumerate(tensor.shape):
            starts = torch.arange(0, size, module.hidden_size, device="cpu")  # of gates, or of directions
            kept[dim] = read if dim == 1 and name.startswith(_FIRST) else (starts[:, None] + units).flatten()
        _select_(module, name, kept)


def _select_rows_(module: nn.Module, held: Mapping[str, Tensor], rows: int, columns: int) -> None:
    before = max(held.values(), key=lambda tensor: tensor.ndim).shape[0]
    for name, tensor in held.items():
        kept = {0: rows} if tensor.shape[0] == before else {}
        if name == "weight" and tensor.ndim > 1:
            kept[1] = columns
        _select_(module, name, {dim: torch.arange(n, device="cpu") for dim, n in kept.items()})


def narrow_heads_(module: nn.Module, path: str, num_heads: int, head_dim: int, key_dim: int | None) -> None:
    """Keep the first heads of an attention module, and the first units of each.

    The logits of narrower heads are scaled by their own width, as timm's fused attention does: what reproduces a dense
    module whose other units are zero is a query times √(new/old).

    Args:
        module: of a class in `blocks.LAYOUTS`.
        path: its place, for the message.
        num_heads: h.
        head_dim: d, the width of a head's values, and of its keys where they are alike.
        key_dim: k, where keys have a width of their own.

    Raises:
        StructureError: its class isn't known, or it hasn't as many.
    """
    layout = blocks.layout(module, path)
    before = layout.lengths(module)
    after = {
        "h": count(num_heads, before["h"], f"narrow: {path}.num_heads"),
        "d": count(head_dim, before["d"], f"narrow: {path}.head_dim"),
    }
    if key_dim is not None and not layout.keys:
        raise StructureError(f"narrow: {path}.key_dim is {key_dim}, but its keys are as wide as its heads")
    after["k"] = count(key_dim, before["k"], f"narrow: {path}.key_dim") if layout.keys else after["d"]
    for (name, dim), pattern in layout.patterns(module).items():
        owner_path, _, tensor = name.rpartition(".")
        owner = module.get_submodule(owner_path)
        place = [blocks.coordinate(pattern, letter, before) for letter in before]
        held = getattr(owner, tensor)
        if len(place[0]) != held.shape[dim]:
            raise StructureError(
                f"narrow: {path}.{name} is {held.shape[dim]} long, expected {len(place[0])} of {before['h']} heads"
            )
        inside = torch.stack([at < after[letter] for at, letter in zip(place, before, strict=True)]).all(0)
        _select_(owner, tensor, {dim: inside.nonzero().flatten()})
        blocks.refresh_(owner)
    for attribute, pattern in layout.attributes.items():
        if hasattr(module, attribute):
            setattr(module, attribute, len(blocks.coordinate(pattern, "h", after)))
    if after["k"] != before["k"] and isinstance(getattr(module, "scale", None), float):
        setattr(module, "scale", after["k"] ** -0.5)  # noqa: B010  # declared in subclasses


def narrow_tensor_(model: nn.Module, path: str, shape: Sequence[int]) -> None:
    """Keep the first positions of a tensor along each dimension.

    Raises:
        StructureError: the model has no such tensor, or it has other dimensions or is smaller.
    """
    owner_path, _, name = path.rpartition(".")
    held = blocks.tensor(model, path)
    if held is None:
        raise StructureError(f"narrow: the base has no tensor {path!r}")
    if len(shape) != held.ndim:
        raise StructureError(f"narrow: {path} has {held.ndim} dimensions, expected {len(shape)}")
    kept = {d: torch.arange(count(n, held.shape[d], f"narrow: {path}[{d}]"), device="cpu") for d, n in enumerate(shape)}
    owner = model.get_submodule(owner_path)
    _select_(owner, name, kept)
    blocks.refresh_(owner)


def _select_(module: nn.Module, name: str, index: Mapping[int, Tensor]) -> None:
    held: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    old = held[name]
    assert old is not None
    if all(len(positions) == old.shape[dim] for dim, positions in index.items()):
        return
    shape = [len(index[dim]) if dim in index else size for dim, size in enumerate(old.shape)]
    new = old.detach().new_empty(shape) if old.is_meta else select(old.detach(), index)
    held[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def select(tensor: Tensor, index: Mapping[int, Tensor]) -> Tensor:
    """Keep positions of a tensor.

    Args:
        tensor: any shape.
        index: dimension → positions kept [k].

    Returns:
        A new tensor with those dimensions k long.
    """
    for dim, positions in index.items():
        tensor = tensor.index_select(dim, positions.to(tensor.device))
    return tensor.contiguous()


@contextmanager
def followed(model: nn.Module) -> Iterator[None]:
    """Within this, layers may change; afterwards what the model says of its widths is what its layers have.

    Each such figure is the width of a layer's outputs: of the last layer that had this width in the base, within the
    part of the network that the figure is about. Read off shapes, so it costs no forward pass.
    """
    before = _outputs(model)
    last = {path: i for i, path in enumerate(before)}
    yield
    after = _outputs(model)
    if before == after:
        return
    order = list(before)

    def width(old: int, end: int) -> int:
        last_path = next((path for path in reversed(order[:end]) if before[path] == old and path in after), None)
        return old if last_path is None else after[last_path] or old

    info: Any = getattr(model, "feature_info", None)
    for row in getattr(info, "info", info) or ():
        inside = [i for path, i in last.items() if f"{path}.".startswith(f"{row.get('module')}.")]
        if inside and "num_chs" in row:
            row["num_chs"] = width(row["num_chs"], max(inside) + 1)
    classifier = _classifier(model)
    end = min((i for path, i in last.items() if f"{path}.".startswith(classifier)), default=len(order))
    for owner in (model, getattr(model, "head", None)):
        if isinstance(owner, nn.Module) and not isinstance(owner, nn.Linear | nn.modules.conv._ConvNd):
            for name in _FIGURES:
                if isinstance(old := vars(owner).get(name), int):
                    setattr(owner, name, width(old, end))


def _outputs(model: nn.Module) -> dict[str, int]:
    """Module path → how many channels its own tensors put out, 0 where it has none or several."""
    return {path: output_width(module) for path, module in model.named_modules()}


def _classifier(model: nn.Module) -> str:
    """The path of the classifier with a dot behind it, or what no path begins with."""
    get: Any = getattr(model, "get_classifier", None)
    classifier = get() if callable(get) else None
    if isinstance(classifier, tuple | list):
        classifier = classifier[0]
    return next((f"{path}." for path, module in model.named_modules() if module is classifier and path), "\n")
