"""The few modules that a plan may put in place of a base's own: subclasses of timm's, which come with timm."""

import math
from typing import Any

import torch
from timm.models import (
    beit,
    cait,
    davit,
    edgenext,
    metaformer,
    pvt_v2,
    swin_transformer_v2,
    swin_transformer_v2_cr,
    vision_transformer_relpos,
    xcit,
)
from torch import Tensor, nn
from torch.nn import functional as F


def attend(
    module: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attend, join the heads whatever their width, and project.

    Args:
        module: the attention module, with `proj`, `attn_drop` and `proj_drop`.
        q: queries [B, h, N, k]; `k` [B, h, M, k] and `v` [B, h, M, d] likewise.
        k: keys.
        v: values.
        bias: added to the logits.
        scale: of the logits; None is k ** -0.5.

    Returns:
        Tokens [B, N, C].
    """
    drop = getattr(module, "attn_drop", None)
    dropout = drop.p if drop is not None and module.training else 0.0
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    return project(module, x)


def project(module: Any, x: Tensor) -> Tensor:
    """Join the heads [B, h, N, d], whatever their width, and mix them to tokens [B, N, C]."""
    out: Tensor = module.proj(x.transpose(1, 2).flatten(2))
    return module.proj_drop(out) if hasattr(module, "proj_drop") else out


def split(x: Tensor, copies: int, heads: int) -> tuple[Tensor, ...]:
    """Tokens [B, N, copies · h · d] as so many tensors [B, h, N, d]."""
    apart: Tensor = x.unflatten(-1, (copies, heads, -1))
    return tuple(apart.permute(2, 0, 3, 1, 4).unbind(0))


class BeitAttention(beit.Attention):
    """timm's beit attention whose heads needn't add up to the embedding (timm reshapes the output to C)."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: tokens [B, N, C].
            shared_rel_pos_bias: added to the attention logits, [1, heads, N, N].

        Returns:
            Tokens [B, N, C].
        """
        biases = (self.q_bias, self.k_bias, self.v_bias)
        bias = None if self.q_bias is None else torch.cat(biases)  # type: ignore[arg-type]  # all or none are there
        q, k, v = split(F.linear(x, self.qkv.weight, bias), 3, self.num_heads)
        mask = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        if shared_rel_pos_bias is not None:
            mask = shared_rel_pos_bias if mask is None else mask + shared_rel_pos_bias
        return attend(self, q, k, v, mask, self.scale)


class MetaFormerAttention(metaformer.Attention):
    """timm's metaformer attention whose heads needn't add up to the stream (timm reshapes the output to C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens [B, N, C]."""
        q, k, v = split(self.qkv(x), 3, self.num_heads)
        return attend(self, q, k, v, scale=self.scale)


class SwinCrAttention(swin_transformer_v2_cr.WindowMultiHeadAttention):
    """timm's swinv2_cr attention whose heads needn't add up to the stream (timm reads their width from C)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend by cosines within windows.

        Args:
            x: tokens [B · windows, L, C].
            mask: added to the logits where windows wrap around, [windows, L, L].

        Returns:
            Tokens [B · windows, L, C].
        """
        q, k, v = split(self.qkv(x), 3, self.num_heads)
        scale = self.logit_scale.view(1, -1, 1, 1).clamp(max=math.log(100)).exp()
        bias = self._relative_positional_encodings()
        if mask is not None:  # the windows of each image follow each other
            bias = bias + mask.unsqueeze(1).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        return attend(self, F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v, bias, 1.0)


class SwinV2Attention(swin_transformer_v2.WindowAttention):
    """timm's swinv2 attention whose heads needn't add up to the stream."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend by cosines within windows, as `SwinCrAttention` does, with biases 16 · sigmoid(mlp(distance))."""
        biases = (self.q_bias, self.k_bias, self.v_bias)
        linear = None if self.q_bias is None else torch.cat(biases)  # type: ignore[arg-type]  # all or none are there
        q, k, v = split(F.linear(x, self.qkv.weight, linear), 3, self.num_heads)
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        bias = 16 * table[self.relative_position_index].permute(2, 0, 1).sigmoid().unsqueeze(0)
        if mask is not None:
            bias = bias + mask.unsqueeze(1).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        return attend(self, F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v, bias, 1.0)


class RelPosAttention(vision_transformer_relpos.RelPosAttention):
    """timm's attention with relative positions whose heads needn't add up to the stream."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """Attend over tokens [B, N, C]; `shared_rel_pos` [1, h, N, N] is used where it has no bias of its own."""
        q, k, v = split(self.qkv(x), 3, self.num_heads)
        own: Any = self.rel_pos
        bias = shared_rel_pos if own is None else own.get_bias()
        return attend(self, self.q_norm(q), self.k_norm(k), v, bias, self.scale)


class PvtAttention(pvt_v2.Attention):
    """timm's attention over a reduced map whose heads needn't add up to the stream."""

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:
        """Attend from tokens [B, H · W, C] to a map reduced by a convolution; `feat_size` is (H, W)."""
        (q,) = split(self.q(x), 1, self.num_heads)
        if self.sr is not None:
            x = x.transpose(1, 2).unflatten(2, list(feat_size))
            x = self.sr(x if self.pool is None else self.pool(x)).flatten(2).transpose(1, 2)
            x = self.norm(x)
            x = x if self.act is None else self.act(x)
        k, v = split(self.kv(x), 2, self.num_heads)
        return attend(self, q, k, v, scale=self.scale)


class CaitClassAttention(cait.ClassAttn):
    """timm's class attention whose heads needn't add up to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend from the first token to all, [B, N, C] → [B, 1, C]."""
        layers = ((self.q, x[:, :1]), (self.k, x), (self.v, x))
        q, k, v = (split(layer(tokens), 1, self.num_heads)[0] for layer, tokens in layers)
        return attend(self, q, k, v, scale=self.scale)


class TalkingHeadAttention(cait.TalkingHeadAttn):
    """timm's attention whose heads mix, and needn't add up to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens [B, N, C]; heads mix before and after the softmax."""
        q, k, v = split(self.qkv(x), 3, self.num_heads)
        logits = self.proj_l((q * self.scale @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
        shares = self.attn_drop(self.proj_w(logits.softmax(2))).permute(0, 3, 1, 2)
        return project(self, shares @ v)


def cross_covariance(module: Any, x: Tensor) -> Tensor:
    """Attend between the channels of each head by their cosines over the tokens [B, N, C]."""
    q, k, v = (each.transpose(-2, -1) for each in split(module.qkv(x), 3, module.num_heads))
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * module.temperature
    return project(module, (module.attn_drop(logits.softmax(-1)) @ v).transpose(-2, -1))


class XcitAttention(xcit.XCA):
    """timm's cross-covariance attention whose heads needn't add up to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend between channels."""
        return cross_covariance(self, x)


class EdgeNextAttention(edgenext.CrossCovarianceAttn):
    """The same in edgenext."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend between channels."""
        return cross_covariance(self, x)


class DavitWindowAttention(davit.WindowAttention):
    """timm's plain attention within windows whose heads needn't add up to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens [B · windows, L, C]."""
        q, k, v = split(self.qkv(x), 3, self.num_heads)
        return attend(self, q, k, v, scale=self.scale)


class DavitChannelAttention(davit.ChannelAttention):
    """timm's attention between channels whose heads needn't add up to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend between the channels of each head, over tokens [B, N, C]."""
        q, k, v = split(self.qkv(x), 3, self.num_heads)
        shares = ((k * self.scale).transpose(-2, -1) @ v).softmax(-1)
        return project(self, (shares @ q.transpose(-2, -1)).transpose(-2, -1))


_CLASSES = (
    BeitAttention,
    CaitClassAttention,
    DavitChannelAttention,
    DavitWindowAttention,
    EdgeNextAttention,
    MetaFormerAttention,
    PvtAttention,
    RelPosAttention,
    SwinCrAttention,
    SwinV2Attention,
    TalkingHeadAttention,
    XcitAttention,
)
REPLACEMENTS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in _CLASSES}
"""What a Swap may name; each replacement is a subclass of the timm class that it replaces."""
