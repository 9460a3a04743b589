"""The few modules that a plan may put in place of a base's own."""

from typing import Any

import torch
from timm.models.beit import Attention
from torch import Tensor, nn
from torch.nn import functional as F


class Zero(nn.Module):
    """A dropped branch: zeros of its input's shape, so that only the shortcut remains."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return zeros like `x`, whatever else is passed."""
        return torch.zeros_like(x)


class Identity(nn.Module):
    """A dropped block: its first input, whatever else is passed (torch's own takes one argument only)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `x`."""
        return x


class BeitAttention(Attention):
    """timm's beit attention whose heads needn't add up to the embedding (timm reshapes the output to C)."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: tokens [B, N, C].
            shared_rel_pos_bias: added to the attention logits, [1, heads, N, N].

        Returns:
            Tokens [B, N, C].
        """
        B, N, _ = x.shape
        biases = (self.q_bias, self.k_bias, self.v_bias)
        bias = None if self.q_bias is None else torch.cat(biases)  # type: ignore[arg-type]  # all or none are there
        qkv = F.linear(x, self.qkv.weight, bias).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mask = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        if shared_rel_pos_bias is not None:
            mask = shared_rel_pos_bias if mask is None else mask + shared_rel_pos_bias
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        x = self.proj(x.transpose(1, 2).flatten(2))
        out: Tensor = self.proj_drop(x)
        return out


REPLACEMENTS: dict[str, type[nn.Module]] = {"BeitAttention": BeitAttention}
"""What a Swap may name; each replacement is a subclass of the timm class that it replaces."""
