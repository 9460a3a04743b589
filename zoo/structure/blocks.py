"""What a module's own attributes follow from, so that a saved plan needs to hold intent alone.

Leaves: an attribute repeats the size of one dimension of one tensor. Attention: a dimension of a tensor is a product of
copies (q, k, v), heads h and head width d, written as a pattern; `Narrow.heads` states h and d, the rest follows.
When timm renames something, this table is mended; saved files are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.errors import StructureError

LEAVES: tuple[tuple[type[nn.Module], Mapping[str, tuple[str, int]]], ...] = (
    (nn.Linear, {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    (nn.modules.conv._ConvNd, {"out_channels": ("weight", 0)}),  # in_channels and groups: see `refresh_`
    (nn.modules.batchnorm._NormBase, {"num_features": ("weight", 0)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    (nn.PReLU, {"num_parameters": ("weight", 0)}),
)


def refresh_(module: nn.Module) -> None:
    """Set a leaf's size attributes from the shapes of its tensors."""
    if isinstance(module, nn.modules.conv._ConvNd):
        module.in_channels = module.weight.shape[1] * module.groups
    if isinstance(getattr(module, "normalized_shape", None), tuple) and isinstance(module.weight, Tensor):
        setattr(module, "normalized_shape", tuple(module.weight.shape))  # noqa: B010  # its type is declared elsewhere
    for kind, attributes in LEAVES:
        if isinstance(module, kind):
            for name, (tensor, dim) in attributes.items():
                held = getattr(module, tensor)
                if held is not None:
                    setattr(module, name, held.shape[dim])


@dataclass(frozen=True)
class Layout:
    """Where an attention class keeps its heads.

    Args:
        tensors: tensor path → one pattern per dimension. A pattern is a product: an optional digit (stacked copies),
            `h` (heads), `d` (head width); `.` leaves the dimension alone.
        attributes: attribute → the pattern whose value it repeats.
        reader: the linear layer that reads the heads' outputs.
        scale: whether the attribute `scale` holds d ** -0.5.
    """

    tensors: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, str]
    reader: str = "proj"
    scale: bool = True

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """Heads and head width as they are now."""
        heads = int(module.num_heads)  # type: ignore[arg-type]
        return heads, module.get_parameter(f"{self.reader}.weight").shape[1] // heads

    def positions(self, pattern: str, sizes: tuple[int, int]) -> Tensor:
        """Where each (copy, head, unit) of a dimension lies.

        Args:
            pattern: the dimension's.
            sizes: heads and head width.

        Returns:
            Indices into the dimension, [copies, h or 1, d or 1].
        """
        copies = int(pattern[0]) if pattern[0].isdigit() else 1
        h = sizes[0] if "h" in pattern else 1
        d = sizes[1] if "d" in pattern else 1
        return torch.arange(copies * h * d, device="cpu").view(copies, h, d)


_TIMM_ATTENTION = Layout(
    tensors={
        "qkv.weight": ("3hd", "."),
        "qkv.bias": ("3hd",),
        "gate.weight": ("hd", "."),
        "gate.bias": ("hd",),
        "q_norm.weight": ("d",),
        "q_norm.bias": ("d",),
        "k_norm.weight": ("d",),
        "k_norm.bias": ("d",),
        "norm.weight": ("hd",),
        "norm.bias": ("hd",),
        "proj.weight": (".", "hd"),
    },
    attributes={"num_heads": "h", "head_dim": "d", "attn_dim": "hd"},
)
_BEIT_ATTENTION = Layout(
    tensors={
        "qkv.weight": ("3hd", "."),
        "q_bias": ("hd",),
        "k_bias": ("hd",),
        "v_bias": ("hd",),
        "relative_position_bias_table": (".", "h"),
        "proj.weight": (".", "hd"),
    },
    attributes={"num_heads": "h"},
)

LAYOUTS: dict[str, Layout] = {
    "timm.layers.attention.Attention": _TIMM_ATTENTION,
    "zoo.structure.layers.BeitAttention": _BEIT_ATTENTION,
}

SWAPS: dict[str, str] = {"timm.models.beit.Attention": "BeitAttention"}
"""Classes that hard-code a width → the replacement that has a layout."""


def class_name(module: nn.Module) -> str:
    """A module's class with its import path."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def layout(module: nn.Module, path: str) -> Layout:
    """The layout of an attention module.

    Raises:
        StructureError: its class isn't in the table.
    """
    found = LAYOUTS.get(class_name(module))
    if found is None:
        known = ", ".join(sorted(LAYOUTS))
        raise StructureError(f"{path}: heads of class {class_name(module)} can't be narrowed; known are {known}")
    return found
