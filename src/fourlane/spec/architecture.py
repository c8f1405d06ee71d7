"""What a model is made of, as far as its times, its memory and its traffic depend on it.

Read from the catalog, a TOML file or a Hugging Face `config.json` by
`fourlane.spec.architecture_file`. Not for weights or tensors (`engine.model.config` is what the engine computes by).
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["BYTES", "Architecture", "GroupedQueryAttention", "KvType", "LatentAttention"]

BYTES = {"int8": 1, "fp8": 1, "bf16": 2, "fp32": 4}
"""Bytes an element takes; scales of fp8 and int8 are not counted."""
KvType = Literal["fp8", "bf16", "fp32"]


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

    def parameters(self, hidden: int) -> int:
        """Return the weights of a layer's projections."""
        query = self.heads * (self.nope_width + self.rope_width)
        queries = hidden * self.query_rank + self.query_rank * query if self.query_rank else hidden * query
        keys = hidden * self.kv_width + self.kv_rank * self.heads * (self.nope_width + self.value_width)
        return queries + keys + self.heads * self.value_width * hidden


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

    def parameters(self, hidden: int) -> int:
        """Return the weights of a layer's projections."""
        return hidden * self.head_width * (2 * self.heads + 2 * self.kv_heads)


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

    @property
    def moe_layers(self) -> int:
        """Return how many layers have experts."""
        return self.layers - self.dense_layers

    @property
    def expert_parameters(self) -> int:
        """Return the weights of one expert of one layer."""
        return 3 * self.hidden * self.expert_inner

    @property
    def shared_parameters(self) -> int:
        """Return what every rank holds whatever its experts: weights, without those of norms and MTP layers."""
        vocabularies = 1 if self.tied_embeddings else 2
        attention = self.layers * self.attention.parameters(self.hidden)
        dense = self.dense_layers * 3 * self.hidden * self.dense_inner
        moe = self.moe_layers * (self.hidden * self.experts + self.shared_experts * self.expert_parameters)
        return attention + dense + moe + vocabularies * self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Return all weights, without those of norms and MTP layers."""
        return self.shared_parameters + self.moe_layers * self.experts * self.expert_parameters

    @property
    def active_parameters(self) -> int:
        """Return the weights that a token meets, embedding and output included as published counts have them."""
        return self.shared_parameters + self.moe_layers * self.top_k * self.expert_parameters

    def kv_bytes_per_token(self, dtype: KvType = "bf16") -> int:
        """Return what a token takes in the KV cache, all layers together."""
        return self.layers * self.attention.kv_width * BYTES[dtype]
