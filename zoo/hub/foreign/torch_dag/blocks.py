"""Modules of timm 0.9 that a checkpoint keeps whole, taken apart into nodes as their own forward goes.

Names of tensors stay those of the module, under the vertex's name. N is the number of tokens, C of channels.

Source: timm 0.9.12, models/{beit,efficientformer_v2,swin_transformer_v2_cr}.py, layers/{grn,mlp,patch_embed}.py.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from zoo.errors import StructureError
from zoo.hub.foreign.torch_dag.leaves import LEAF_CONVERTERS, leaf
from zoo.hub.foreign.torch_dag.writer import Writer, attribute, child, required_tensor, two_ints, weights
from zoo.hub.foreign.unpickle import Record

Block = Callable[..., str]
EFFICIENTFORMER = "timm.models.efficientformer_v2."
SWIN = "timm.models.swin_transformer_v2_cr."


class _Steps:
    """Writes one block's nodes, each under the block's name."""

    def __init__(self, writer: Writer, name: str, record: Record) -> None:
        self.writer, self.name, self.record = writer, name, record

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.writer.function(op, f"{self.name}.step{len(self.writer.nodes)}", *inputs, **attributes)

    def module(self, path: str, x: str) -> str:
        """A module within the block."""
        record = self.record
        for part in path.split("."):
            record = child(record, part)
        if record.name in LEAF_CONVERTERS:
            return leaf(self.writer, f"{self.name}.{path}", record, x)
        if record.name not in BLOCK_CONVERTERS:
            raise StructureError(f"{self.name}.{path} is a {record.name}, which isn't known")
        return BLOCK_CONVERTERS[record.name](self.writer, f"{self.name}.{path}", record, x)

    def parameter(self, key: str, value: Tensor | None = None) -> str:
        """A parameter of the block's own."""
        return self.writer.parameter(
            f"{self.name}.{key}", required_tensor(self.record, key) if value is None else value
        )

    def buffer(self, key: str) -> str:
        """A buffer of the block's own."""
        return self.writer.buffer(f"{self.name}.{key}", required_tensor(self.record, key))

    def has(self, path: str) -> bool:
        """Whether the block has such a module."""
        return isinstance(self.record.state.get("_modules", {}).get(path), Record)


def _patch_embed(writer: Writer, name: str, record: Record, x: str) -> str:
    do = _Steps(writer, name, record)
    x = do.module("proj", x)
    if record.state.get("flatten"):
        x = do("transpose", do("flatten", x, start_dim=2, end_dim=-1), dim0=1, dim1=2)
    return do.module("norm", x)


def _grn(writer: Writer, name: str, record: Record, x: str) -> str:
    """X = ‖x‖ over space; x + weight·x·X / (mean of X over channels + eps) + bias."""
    do = _Steps(writer, name, record)
    shape = list(attribute(record, "wb_shape", (list, tuple)))
    space = list(attribute(record, "spatial_dim", (list, tuple)))
    X = do("norm", x, ord=2, dim=space, keepdim=True)
    mean = do("mean", X, dim=attribute(record, "channel_dim", int), keepdim=True)
    scaled = do("mul", x, do("div", X, do("shift", mean, other=attribute(record, "eps", float))))
    weight, bias = (do("reshape", do.parameter(key), shape=shape) for key in ("weight", "bias"))
    return do("add", x, do("add", bias, do("mul", weight, scaled)))


def _mlp(writer: Writer, name: str, record: Record, x: str) -> str:
    do = _Steps(writer, name, record)
    for part in ("fc1", "act", "drop1", "norm", "fc2", "drop2"):
        x = do.module(part, x) if do.has(part) else x
    return x


def _beit_attention(writer: Writer, name: str, record: Record, x: str) -> str:
    do = _Steps(writer, name, record)
    heads = attribute(record, "num_heads", int)
    qkv = do.module("qkv", x)
    if "q_bias" in weights(record):
        biases = [do.parameter("q_bias"), do.buffer("k_bias"), do.parameter("v_bias")]
        qkv = do("add", qkv, do("concat", *biases, dim=0))
    qkv = do("reshape", qkv, do("size", x, dim=1), shape=["batch", "input", 3, heads, -1])
    qkv = do("permute", qkv, dims=[2, 0, 3, 1, 4])
    q, k, v = (do("item", qkv, index=i) for i in range(3))
    inputs = [q, k, v]
    if "relative_position_bias_table" in weights(record):
        N = math.prod(two_ints(record.state.get("window_size"), f"{name}.window_size")) + 1
        inputs.append(_position_bias(do, "relative_position_bias_table", "relative_position_index", N))
    x = do("attention", *inputs, scale=attribute(record, "scale", float))
    x = do("flatten", do("transpose", x, dim0=1, dim1=2), start_dim=2, end_dim=-1)
    return do.module("proj", x)


def _position_bias(do: _Steps, table: str, index: str, N: int) -> str:
    """Rows of a table [distances, heads] by a table of indices [N, N]: [1, heads, N, N]."""
    rows = do("gather", do.parameter(table), do("flatten", do.buffer(index)), dim=0)
    bias = do("permute", do("reshape", rows, shape=[N, N, -1]), dims=[2, 0, 1])
    return do("unsqueeze", bias, dim=0)


def _conv_norm(writer: Writer, name: str, record: Record, x: str) -> str:
    do = _Steps(writer, name, record)
    return do.module("bn", do.module("conv", x))


def _local_global_query(writer: Writer, name: str, record: Record, x: str) -> str:
    do = _Steps(writer, name, record)
    return do.module("proj", do("add", do.module("local", x), do.module("pool", x)))


def _attention_2d(writer: Writer, name: str, record: Record, x: str) -> str:
    """EfficientFormerV2's attention over pixels; the query of the downsampling one has a quarter of them."""
    do = _Steps(writer, name, record)
    heads, dh = attribute(record, "num_heads", int), attribute(record, "dh", int)
    down = "N2" in record.state
    N, N_q = attribute(record, "N", int), attribute(record, "N2" if down else "N", int)
    height, width = two_ints(record.state.get("resolution2" if down else "resolution"), f"{name}.resolution")
    if do.has("stride_conv"):
        x = do.module("stride_conv", x)
    q = do("transpose", do("reshape", do.module("q", x), shape=["batch", heads, -1, N_q]), dim0=2, dim1=3)
    k = do("reshape", do.module("k", x), shape=["batch", heads, -1, N])
    v = do.module("v", x)
    local = do.module("v_local", v)
    v = do("transpose", do("reshape", v, shape=["batch", heads, -1, N]), dim0=2, dim1=3)
    attention = do("scale", do("matmul", q, k), other=attribute(record, "scale", float))
    bias = do("gather", do.parameter("attention_biases"), do("flatten", do.buffer("attention_bias_idxs")), dim=1)
    attention = do("add", attention, do("reshape", bias, shape=[heads, N_q, N]))
    attention = do.module("talking_head1", attention) if do.has("talking_head1") else attention
    attention = do("softmax", attention, dim=-1)
    attention = do.module("talking_head2", attention) if do.has("talking_head2") else attention
    x = do("transpose", do("matmul", attention, v), dim0=2, dim1=3)
    x = do("add", do("reshape", x, shape=["batch", dh, height, width]), local)
    x = do.module("upsample", x) if do.has("upsample") else x
    return do.module("proj", do.module("act", x))


def _swin_patch_embed(writer: Writer, name: str, record: Record, x: str) -> str:
    do = _Steps(writer, name, record)
    x = do("permute", do.module("proj", x), dims=[0, 2, 3, 1])
    return do("permute", do.module("norm", x), dims=[0, 3, 1, 2])


def _patch_merging(writer: Writer, name: str, record: Record, x: str) -> str:
    do = _Steps(writer, name, record)
    return do.module("reduction", do.module("norm", do("merge_patches", x)))


def _window_attention(writer: Writer, name: str, record: Record, x: str, mask: str | None = None) -> str:
    """Cosine attention in windows, with a position bias that a small network makes of log-spaced coordinates."""
    do = _Steps(writer, name, record)
    heads = attribute(record, "num_heads", int)
    L = math.prod(two_ints(record.state.get("window_size"), f"{name}.window_size"))
    if record.state.get("sequential_attn"):
        raise StructureError(f"{name}: sequential attention isn't known")
    qkv = do("permute", do("reshape", do.module("qkv", x), shape=["batch", L, 3, heads, -1]), dims=[2, 0, 3, 1, 4])
    q, k, v = (do("item", qkv, index=i) for i in range(3))
    q, k = do("normalize", q, dim=-1), do("transpose", do("normalize", k, dim=-1), dim0=-2, dim1=-1)
    scale = do("reshape", do.parameter("logit_scale"), shape=[1, heads, 1, 1])
    attention = do("mul", do("matmul", q, k), do("exp", do("clamp", scale, max=math.log(100))))
    bias = do("transpose", do.module("meta_mlp", do.buffer("relative_coordinates_log")), dim0=1, dim1=0)
    attention = do("add", attention, do("reshape", bias, shape=[1, heads, L, L]))
    attention = attention if mask is None else do("masked", attention, mask)
    attention = do.module("attn_drop", do("softmax", attention, dim=-1))
    x = do("flatten", do("transpose", do("matmul", attention, v), dim0=1, dim1=2), start_dim=2, end_dim=-1)
    return do.module("proj_drop", do.module("proj", x))


BLOCK_CONVERTERS: Mapping[str, Block] = {
    "timm.layers.patch_embed.PatchEmbed": _patch_embed,
    "timm.layers.grn.GlobalResponseNorm": _grn,
    "timm.layers.mlp.Mlp": _mlp,
    "timm.models.beit.Attention": _beit_attention,
    f"{EFFICIENTFORMER}ConvNorm": _conv_norm,
    f"{EFFICIENTFORMER}LocalGlobalQuery": _local_global_query,
    "torch_dag_timm_plugin.modified_timm_modules.ModifiedAttention2d": _attention_2d,
    "torch_dag_timm_plugin.modified_timm_modules.ModifiedAttention2dDownsample": _attention_2d,
    f"{SWIN}PatchEmbed": _swin_patch_embed,
    f"{SWIN}PatchMerging": _patch_merging,
    f"{SWIN}WindowMultiHeadAttention": _window_attention,
}
"""Class → how it is taken apart."""
