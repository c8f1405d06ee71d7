"""What a model is made of, as far as its times, its memory and its traffic depend on it.

Read from the catalog, a TOML file or a Hugging Face `config.json` by
`fourlane.spec.architecture_file`. Not for weights or tensors (`engine.model.config` is what the engine computes by).
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Architecture", "GroupedQueryAttention", "LatentAttention"]


class LatentAttention(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="mla"
):
    """Multi-head latent attention (MLA): one compressed KV row a token, shared by all heads.

    Ranks and widths are elements: `query_rank`, `kv_rank` of the low-rank projections (query_rank 0: queries are
    projected at once), `rope_width` a head's rotated part, `nope_width` its part that is not rotated, `value_width`.
    """

    heads: int
    query_rank: int
    kv_rank: int
    rope_width: int
    nope_width: int
    value_width: int

    @property
    def kv_width(self) -> int:
        """Return the elements a token's row in the KV cache has, in one layer."""
        return self.kv_rank + self.rope_width


class GroupedQueryAttention(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="gqa"
):
    """Grouped-query attention (GQA); `head_width` in elements."""

    heads: int
    kv_heads: int
    head_width: int

    @property
    def kv_width(self) -> int:
        """Return the elements a token's K and V in the cache have together, in one layer."""
        return 2 * self.kv_heads * self.head_width


class Architecture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mixture-of-experts transformer.

    The first `dense_layers` of `layers` have one feed-forward network of `dense_inner`, the others `experts` routed
    ones of `expert_inner`, `top_k` for each token, chosen within `top_groups` of `groups`, and `shared_experts` that
    every token goes to. `mtp_layers` predict tokens ahead (multi-token prediction); they are no part of `layers`.
    """

    name: str
    layers: int
    dense_layers: int = 0
    hidden: int
    vocabulary: int
    attention: LatentAttention | GroupedQueryAttention
    experts: int
    top_k: int
    shared_experts: int = 0
    groups: int = 1
    top_groups: int = 1
    expert_inner: int
    dense_inner: int = 0
    tied_embeddings: bool = False
    mtp_layers: int = 0
    weights: Literal["fp8", "bf16", "fp32"] = "bf16"
    """In which form its experts and linear layers are published."""
    source: str

    @property
    def moe(self) -> tuple[bool, ...]:
        """Return for each layer whether it has experts, as `policy.stages.model_stages` takes it."""
        return (False,) * self.dense_layers + (True,) * (self.layers - self.dense_layers)
