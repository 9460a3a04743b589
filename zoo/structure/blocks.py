"""What a module's own attributes follow from, so that a saved plan needs to hold intent alone.

Leaves and blocks: an attribute repeats the size of one dimension of one tensor. Attention: a dimension of a tensor is
made of heads h, head width d and key width k, written as a pattern; `Narrow.heads` states them, the rest follows.
When timm renames something, these tables are mended; saved files are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import StructureError

Follows = Mapping[
    str, tuple[tuple[str, int], ...]
]  # attribute (or one place of it) → (tensor, dimension), the first there

LEAVES: tuple[tuple[type[nn.Module], Follows], ...] = (
    (nn.Linear, {"out_features": (("weight", 0),), "in_features": (("weight", 1),)}),
    (nn.modules.conv._ConvNd, {"out_channels": (("weight", 0),)}),  # in_channels and groups: see `refresh_`
    (nn.modules.batchnorm._NormBase, {"num_features": (("weight", 0), ("running_mean", 0))}),
    (
        nn.RNNBase,
        {
            "input_size": (("weight_ih_l0", 1),),
            "hidden_size": (("weight_hr_l0", 1), ("weight_hh_l0", 1)),  # the first where outputs are projected
        },
    ),
    (nn.GroupNorm, {"num_channels": (("weight", 0),)}),
    (nn.PReLU, {"num_parameters": (("weight", 0),)}),
    (nn.Module, {"normalized_shape[0]": (("weight", 0),)}),  # of layer norms, whoever wrote them
)
BLOCKS: dict[str, Follows] = {
    "timm.layers.pos_embed_rel.RelPosBias": {"bias_shape[2]": (("relative_position_bias_table", 1),)},
    "timm.layers.pos_embed_rel.RelPosMlp": {
        "num_heads": (("mlp.fc2.weight", 0),),
        "bias_shape[2]": (("mlp.fc2.weight", 0),),
    },
    "timm.layers.pos_embed_rel.RelPosBiasTf": {
        "num_heads": (("relative_position_bias_table", 0),),
        "bias_shape[0]": (("relative_position_bias_table", 0),),
    },
    "timm.models.metaformer.Scale": {"shape[0]": (("scale", 0),)},
    "timm.models.mobilevit.LinearSelfAttention": {"embed_dim": (("out_proj.weight", 1),)},
    "timm.models.res2net.Bottle2neck": {"width": (("convs.0.weight", 1),)},
    "timm.models.rexnet.LinearBottleneck": {
        "in_channels": (("conv_exp.conv.weight", 1), ("conv_dw.conv.weight", 0)),
        "out_channels": (("conv_pwl.conv.weight", 0),),
    },
    "zoo.models.yolov8.C2f": {"width": (("m.0.cv1.conv.weight", 1), ("m.0.cv1.conv.0.weight", 1))},
}
"""Attributes that a block's forward reads, by class."""


def refresh_(module: nn.Module) -> None:
    """Set a leaf's size attributes from the shapes of its tensors."""
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == module.in_channels > 1:  # depthwise stays depthwise
            module.groups = module.weight.shape[0] * module.groups // module.out_channels
        module.in_channels = module.weight.shape[1] * module.groups
    for kind, attributes in LEAVES:
        if isinstance(module, kind):
            _follow_(module, attributes)


def refresh_block_(module: nn.Module) -> None:
    """Set the attributes of a block that repeat the sizes of its layers, and forget what it has computed from them."""
    _follow_(module, BLOCKS.get(class_name(module), {}))
    if vars(module).get("attention_bias_cache"):  # in vars: nn.Module's getattr takes long over what isn't there
        setattr(module, "attention_bias_cache", {})  # noqa: B010  # declared in subclasses


def _follow_(module: nn.Module, attributes: Follows) -> None:
    for key, sources in attributes.items():
        name, _, place = key.rstrip("]").partition("[")
        old = getattr(module, name, None)
        size = next((held.shape[dim] for path, dim in sources if (held := tensor(module, path)) is not None), None)
        if old is None or size is None:
            continue
        setattr(module, name, tuple(size if str(i) == place else n for i, n in enumerate(old)) if place else size)


def tensor(module: nn.Module, path: str) -> Tensor | None:
    """A parameter or buffer by its path, or None."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, Tensor) else None


Sizes = Mapping[str, int]  # h, d and k of one attention module


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))


def _conv_norm(name: str) -> tuple[str, ...]:
    """The tensors of a layer and the batch norm behind it, whichever timm calls them."""
    layers = _both(f"{name}.conv", f"{name}.linear", f"{name}.bn")
    return (*layers, f"{name}.bn.running_mean", f"{name}.bn.running_var")


_READS = (".", "hd")  # the pattern by which the layer is known that reads the heads' outputs
_TENSORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_both("qkv"), ("3hd",)),
    **dict.fromkeys(_both("kv"), ("2hd",)),
    **dict.fromkeys(_both("q", "k", "v", "q_proj", "k_proj", "v_proj", "wq", "wk", "wv", "gate", "norm"), ("hd",)),
    **dict.fromkeys(("q_bias", "k_bias", "v_bias"), ("hd",)),
    **dict.fromkeys(_both("q_norm", "k_norm"), ("d",)),
    **dict.fromkeys(("logit_scale", "temperature", "gating_param"), ("h",)),
    **dict.fromkeys(("relative_position_bias_table", "rel_pos.relative_position_bias_table"), (".", "h")),
    **dict.fromkeys(_both("cpb_mlp.2", "meta_mlp.fc2", "rel_pos.mlp.fc2"), ("h",)),
    "proj_l.weight": ("h", "h"),
    "proj_w.weight": ("h", "h"),
    "proj_l.bias": ("h",),
    "proj_w.bias": ("h",),
    "proj.weight": _READS,
}
_ATTRIBUTES = {
    **dict.fromkeys(("num_heads", "num_kv_heads", "heads", "groups"), "h"),
    **dict.fromkeys(("head_dim", "dim_head"), "d"),
    **dict.fromkeys(("attn_dim", "attention_dim", "kv_dim"), "hd"),
}


@dataclass(frozen=True)
class Layout:
    """Where an attention class keeps its heads; what a module hasn't got of the tables is passed over.

    Args:
        tensors: tensor path → a pattern for each of its first dimensions. A pattern is a sum of products, perhaps
            within heads: `3hd` (q, k, v by head), `h3d`, `h(2k+d)`, `1+2d`; a letter is the number of heads (h), their
            width (d) or that of their keys (k), a digit counts copies; `.` leaves the dimension alone.
        attributes: attribute → the pattern whose length it repeats.
        heads: the attribute that holds h; empty where there is one head.
        keys: the attribute that holds k, where keys aren't d wide.
    """

    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _TENSORS)
    attributes: Mapping[str, str] = field(default_factory=lambda: _ATTRIBUTES)
    heads: str = "num_heads"
    keys: str = ""

    def lengths(self, module: nn.Module) -> dict[str, int]:
        """Heads (h), head width (d) and key width (k) as they are now."""
        read = (
            held
            for name, patterns in self.tensors.items()
            if patterns == _READS and (held := tensor(module, name)) is not None
        )
        h = int(getattr(module, self.heads)) if self.heads else 1
        d = next(read).shape[1] // h
        return {"h": h, "d": d, "k": int(getattr(module, self.keys)) if self.keys else d}

    def patterns(self, module: nn.Module) -> dict[tuple[str, int], str]:
        """(tensor path, dimension) → pattern, of the tensors that a module has."""
        by_tensor: dict[tuple[str, int], str] = {}
        for name, patterns in self.tensors.items():
            if tensor(module, name) is not None:
                by_tensor |= {(name, dim): pattern for dim, pattern in enumerate(patterns) if pattern != "."}
        if getattr(module, "head_first", False):  # timm's flag: each head's q, k and v lie side by side
            return {place: "h3d" if pattern == "3hd" else pattern for place, pattern in by_tensor.items()}
        return by_tensor


def coordinate(pattern: str, letter: str, sizes: Sizes) -> Tensor:
    """Which head (or unit of a head) each position of a dimension belongs to.

    Args:
        pattern: the dimension's.
        letter: h, d or k.
        sizes: of the module.

    Returns:
        Coordinates along that letter, as long as the dimension; 0 where the letter has no part in it.
    """
    outer, _, inner = pattern.rpartition("(")
    within = torch.cat([_product(term, letter, sizes) for term in inner.rstrip(")").split("+")])
    around = _product(outer, letter, sizes)
    return around.repeat_interleave(len(within)) if letter in outer else within.repeat(len(around))


def _product(factors: str, letter: str, sizes: Sizes) -> Tensor:
    shape = [int(each) if each.isdigit() else sizes[each] for each in factors]
    axis = factors.find(letter)
    if axis < 0:
        return torch.zeros(shape, dtype=torch.long, device="cpu").flatten()
    along = [-1 if i == axis else 1 for i in range(len(shape))]
    return torch.arange(shape[axis], device="cpu").view(along).expand(shape).flatten()


_SPLIT = {  # keys and values of different width
    **dict.fromkeys((*_both("qkv"), *_conv_norm("qkv")), ("h(2k+d)",)),
    **dict.fromkeys(_conv_norm("kv"), ("h(k+d)",)),
    **dict.fromkeys(_conv_norm("q.ln"), ("hk",)),
    "attention_biases": ("h",),
    "proj.weight": _READS,
    "proj.ln.linear.weight": _READS,
    "proj.ln.conv.weight": _READS,
}
_SPLIT_ATTRIBUTES = {
    "num_heads": "h",
    "key_dim": "k",
    "key_attn_dim": "hk",
    **dict.fromkeys(("val_dim", "value_dim", "d"), "d"),
    **dict.fromkeys(("val_attn_dim", "out_dim", "dh"), "hd"),
}
_LEVIT = Layout(_SPLIT, _SPLIT_ATTRIBUTES, keys="key_dim")
_EFFICIENTFORMER = Layout(
    {
        **dict.fromkeys((*_conv_norm("q"), *_conv_norm("q.proj"), *_conv_norm("k")), ("hk",)),
        **dict.fromkeys((*_conv_norm("v"), *_conv_norm("v_local")), ("hd",)),
        **dict.fromkeys(("talking_head1.weight", "talking_head2.weight"), ("h", "h")),
        **dict.fromkeys(("talking_head1.bias", "talking_head2.bias", "attention_biases"), ("h",)),
        "proj.conv.weight": _READS,
    },
    {name: pattern for name, pattern in _SPLIT_ATTRIBUTES.items() if name != "out_dim"},
    keys="key_dim",
)
_MULTI_QUERY = Layout(
    {
        **dict.fromkeys(_both("query.proj"), ("hk",)),
        **dict.fromkeys(_both("key.proj"), ("k",)),
        **dict.fromkeys(_both("value.proj"), ("d",)),
        "output.proj.weight": _READS,
    },
    _SPLIT_ATTRIBUTES,
    keys="key_dim",
)
_GEMMA = Layout(
    {
        **dict.fromkeys(_both("q_proj.linear", "k_proj.linear", "v_proj.linear"), ("hd",)),
        **dict.fromkeys(_both("q_norm", "k_norm"), ("d",)),
        "o_proj.linear.weight": _READS,
    }
)
_LINEAR = Layout(
    {**dict.fromkeys(_both("qkv_proj"), ("1+2d",)), "out_proj.weight": _READS}, {"embed_dim": "d"}, heads=""
)

SWAPS: dict[str, str] = {
    "timm.models.beit.Attention": "BeitAttention",
    "timm.models.cait.ClassAttn": "CaitClassAttention",
    "timm.models.davit.ChannelAttention": "DavitChannelAttention",
    "timm.models.davit.WindowAttention": "DavitWindowAttention",
    "timm.models.edgenext.CrossCovarianceAttn": "EdgeNextAttention",
    "timm.models.metaformer.Attention": "MetaFormerAttention",
    "timm.models.pvt_v2.Attention": "PvtAttention",
    "timm.models.vision_transformer_relpos.RelPosAttention": "RelPosAttention",
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": "SwinCrAttention",
    "timm.models.swin_transformer_v2.WindowAttention": "SwinV2Attention",
    "timm.models.cait.TalkingHeadAttn": "TalkingHeadAttention",
    "timm.models.xcit.XCA": "XcitAttention",
}
"""Classes that hard-code a width → the replacement that has a layout, a key of `replacements.REPLACEMENTS`."""

LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(
        (
            "timm.layers.attention.Attention",
            "timm.layers.attention.AttentionRope",
            "timm.layers.attention2d.Attention2d",
            "timm.models.maxxvit.Attention2d",
            "timm.models.maxxvit.AttentionCl",
            "timm.models.swin_transformer.WindowAttention",
            "timm.models.volo.ClassAttention",
            *(f"zoo.structure.replacements.{name}" for name in SWAPS.values()),
        ),
        Layout(),
    ),
    "timm.layers.attention2d.MultiQueryAttention2d": _MULTI_QUERY,
    "timm.models.efficientformer.Attention": _LEVIT,
    "timm.models.efficientformer_v2.Attention2d": _EFFICIENTFORMER,
    "timm.models.efficientformer_v2.Attention2dDownsample": _EFFICIENTFORMER,
    "timm.models.gemma4_vit.Gemma4Attention": _GEMMA,
    "timm.models.hiera.MaskUnitAttention": Layout(attributes={**_ATTRIBUTES, "dim_out": "hd"}, heads="heads"),
    "timm.models.hieradet_sam2.MultiScaleAttention": Layout(attributes={**_ATTRIBUTES, "dim_out": "hd"}),
    "timm.models.levit.Attention": _LEVIT,
    "timm.models.levit.AttentionDownsample": _LEVIT,
    "timm.models.mobilevit.LinearSelfAttention": _LINEAR,
    "timm.models.tiny_vit.Attention": _LEVIT,
    "zoo.structure.replacements.PvtAttention": Layout(
        {name: patterns for name, patterns in _TENSORS.items() if name not in _both("norm")}  # of the reduced map
    ),
}


def class_name(module: nn.Module) -> str:
    """A module's class with its import path."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def layout(module: nn.Module, path: str) -> Layout:
    """The layout of an attention module.

    Raises:
        StructureError: its class isn't in the table.
    """
    known = LAYOUTS.get(class_name(module))
    if known is None:
        replaced = SWAPS.get(class_name(module))
        hint = f"swap it for {replaced} first" if replaced else "narrow its layers by widths"
        raise StructureError(f"narrow: {path} is a {class_name(module)}, whose heads aren't known; {hint}")
    return known
