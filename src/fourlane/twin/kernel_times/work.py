"""What the kernels of each part of a forward pass compute and read, by the architecture.

Bytes are those of weights and of activations that go through memory: what a kernel writes, the next one reads. Norms,
quantisation and rotation only move bytes. Not for rates (`roofline`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from fourlane.spec.architecture import BYTES, Architecture, LatentAttention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.policy.stages import Part
    from fourlane.spec.architecture import GroupedQueryAttention
    from fourlane.twin.times import RankLoad

__all__ = ["Kernel", "PartWork"]

_ACTIVATION = 2
"""Bytes of an element of activations, BF16; those that GEMMs read are as wide as the weights."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel, or several alike that follow each other.

    Args:
        size: bytes read and written.
        flops: operations; 0 for kernels that only move bytes.
        kind: which share of the peak it reaches.
        dtype: it multiplies in.
        rows: of all its matrices.
        matrices: that these rows are of: the experts of a grouped GEMM.
        launches: how many kernels these are.
    """

    size: float
    flops: float = 0.0
    kind: Literal["dense", "grouped", "attention prefill", "attention decode"] = "dense"
    dtype: str = "bf16"
    rows: float = 0.0
    matrices: float = 1.0
    launches: int = 1


@dataclass(frozen=True)
class PartWork:
    """Kernels of the parts of an architecture.

    Args:
        architecture: of the model.
        weights: type of its linear layers and experts.
        kv: type of the KV cache.
        rows_per_sequence: of a decoding sequence in a step; more than 1 where tokens are drafted.
    """

    architecture: Architecture
    weights: str
    kv: str
    rows_per_sequence: int = 1

    def kernels(self, part: Part, load: RankLoad) -> list[Kernel]:
        """Return the kernels of a part in one layer."""
        return list(self._parts[part](load))

    @cached_property
    def _parts(self) -> dict[Part, Callable[[RankLoad], Iterator[Kernel]]]:
        return {
            "embedding": self._embedding,
            "attention 0": self._attention_0,
            "attention 1": self._attention_1,
            "router": self._router,
            "shared expert": self._shared,
            "experts": self._experts,
            "experts 0": self._half_of_experts,
            "experts 1": self._half_of_experts,
            "mlp": self._mlp,
            "output": self._output,
        }

    # every part

    def _linear(self, rows: float, inner: float, outer: float, *, dtype: str | None = None) -> Kernel:
        """Multiply rows by a matrix: activations as wide as weights in, BF16 out."""
        dtype = dtype or self.weights
        wide = BYTES[dtype]
        size = wide * inner * outer + rows * (wide * inner + _ACTIVATION * outer)
        return Kernel(size, 2 * rows * inner * outer, dtype=dtype, rows=rows)

    def _norm(self, rows: float) -> Kernel:
        """Add the residual, norm, quantise: three rows in and out, and the normed one."""
        return Kernel(rows * self.architecture.hidden * (3 * _ACTIVATION + BYTES[self.weights]))

    def _embedding(self, load: RankLoad) -> Iterator[Kernel]:
        yield Kernel(2 * load.tokens * self.architecture.hidden * _ACTIVATION)

    def _attention_0(self, load: RankLoad) -> Iterator[Kernel]:
        attention = self.architecture.attention
        yield self._norm(load.tokens)
        if isinstance(attention, LatentAttention):
            yield from self._latent_0(attention, load)
        else:
            yield from self._grouped_0(attention, load)

    def _attention_1(self, load: RankLoad) -> Iterator[Kernel]:
        attention = self.architecture.attention
        if isinstance(attention, LatentAttention):
            yield from self._latent_1(attention, load)
        else:
            yield from self._grouped_1(attention, load)

    # attention, latent: projected to heads in prefill, absorbed in decode

    def _latent_0(self, latent: LatentAttention, load: RankLoad) -> Iterator[Kernel]:
        rows, hidden = load.tokens, self.architecture.hidden
        query = latent.heads * (latent.nope_width + latent.rope_width)
        narrow = latent.query_rank + latent.kv_width
        if latent.query_rank:
            yield self._linear(rows, hidden, narrow)
            yield Kernel(rows * narrow * (_ACTIVATION + BYTES[self.weights]), launches=2)
            yield self._linear(rows, latent.query_rank, query)
        else:
            yield self._linear(rows, hidden, query + latent.kv_width)
        if load.prefill_tokens:
            keys = latent.heads * (latent.nope_width + latent.value_width)
            yield self._linear(load.prefill_tokens, latent.kv_rank, keys)
            yield Kernel(4 * load.prefill_tokens * query * _ACTIVATION, launches=2)
        if load.decode_tokens:
            yield self._by_heads(load.decode_tokens, latent.nope_width, latent.kv_rank)
            yield Kernel(2 * load.decode_tokens * latent.heads * latent.kv_width * _ACTIVATION, launches=2)

    def _by_heads(self, rows: float, inner: int, outer: int) -> Kernel:
        """Multiply each head's rows by a matrix of its own, BF16."""
        heads = self.architecture.attention.heads
        size = _ACTIVATION * heads * (inner * outer + rows * (inner + outer))
        return Kernel(size, 2 * rows * heads * inner * outer, dtype="bf16", rows=rows)

    def _latent_1(self, latent: LatentAttention, load: RankLoad) -> Iterator[Kernel]:
        heads, query = latent.heads, latent.nope_width + latent.rope_width
        if load.prefill_tokens:
            flops = 2 * heads * (query + latent.value_width) * load.prefill_pairs
            size = load.prefill_tokens * heads * 2 * (query + latent.value_width) * _ACTIVATION
            yield Kernel(size, flops, "attention prefill")
        if load.decode_tokens:
            pairs = load.decode_context * self.rows_per_sequence
            flops = 2 * heads * (latent.kv_width + latent.kv_rank) * pairs
            size = load.decode_context * latent.kv_width * BYTES[self.kv]
            size += load.decode_tokens * heads * (latent.kv_width + latent.kv_rank) * _ACTIVATION
            yield Kernel(size, flops, "attention decode", launches=2)
            yield self._by_heads(load.decode_tokens, latent.kv_rank, latent.value_width)
        yield from self._project_back(load.tokens, heads * latent.value_width)

    def _project_back(self, rows: float, width: int) -> Iterator[Kernel]:
        yield Kernel(rows * width * (_ACTIVATION + BYTES[self.weights]))
        yield self._linear(rows, width, self.architecture.hidden)

    # attention, grouped queries

    def _grouped_0(self, grouped: GroupedQueryAttention, load: RankLoad) -> Iterator[Kernel]:
        width = grouped.heads * grouped.head_width + grouped.kv_width
        yield self._linear(load.tokens, self.architecture.hidden, width)
        yield Kernel(2 * load.tokens * width * _ACTIVATION, launches=2)

    def _grouped_1(self, grouped: GroupedQueryAttention, load: RankLoad) -> Iterator[Kernel]:
        width = grouped.heads * grouped.head_width
        if load.prefill_tokens:
            size = load.prefill_tokens * (2 * width + grouped.kv_width) * _ACTIVATION
            yield Kernel(size, 4 * width * load.prefill_pairs, "attention prefill")
        if load.decode_tokens:
            size = load.decode_context * grouped.kv_width * BYTES[self.kv]
            size += 2 * load.decode_tokens * width * _ACTIVATION
            yield Kernel(size, 4 * width * load.decode_context * self.rows_per_sequence, "attention decode", launches=2)
        yield from self._project_back(load.tokens, width)

    # feed-forward

    def _router(self, load: RankLoad) -> Iterator[Kernel]:
        yield self._norm(load.tokens)
        yield self._linear(load.tokens, self.architecture.hidden, self.architecture.experts, dtype="bf16")
        yield Kernel(load.tokens * 2 * self.architecture.experts * _ACTIVATION, launches=2)

    def _dense(self, rows: float, inner: int) -> Iterator[Kernel]:
        """Gate and up in one GEMM, activation and quantisation, down."""
        yield self._linear(rows, self.architecture.hidden, 2 * inner)
        yield Kernel(rows * inner * (2 * _ACTIVATION + BYTES[self.weights]))
        yield self._linear(rows, inner, self.architecture.hidden)

    def _shared(self, load: RankLoad) -> Iterator[Kernel]:
        yield from self._dense(load.tokens, self.architecture.shared_experts * self.architecture.expert_inner)

    def _mlp(self, load: RankLoad) -> Iterator[Kernel]:
        yield self._norm(load.tokens)
        yield from self._dense(load.tokens, self.architecture.dense_inner)

    def _experts(self, load: RankLoad) -> Iterator[Kernel]:
        yield from self._some_experts(load, load.expert_rows)

    def _half_of_experts(self, load: RankLoad) -> Iterator[Kernel]:
        yield from self._some_experts(load, load.expert_rows / 2)

    def _some_experts(self, load: RankLoad, rows: float) -> Iterator[Kernel]:
        """Two grouped GEMMs and the activation between; in prefill rows are sorted by expert before, summed after."""
        hidden, inner = self.architecture.hidden, self.architecture.expert_inner
        wide, active = BYTES[self.weights], min(load.active_experts, rows)
        if load.prefill_tokens:
            yield Kernel(rows * hidden * 2 * wide)
        for across, out in ((hidden, 2 * inner), (inner, hidden)):
            size = active * wide * across * out + rows * (wide * across + _ACTIVATION * out)
            yield Kernel(size, 2 * rows * across * out, "grouped", self.weights, rows, active)
        yield Kernel(rows * inner * (2 * _ACTIVATION + wide), launches=4)
        if load.prefill_tokens:
            yield Kernel(rows * hidden * 2 * _ACTIVATION)

    def _output(self, load: RankLoad) -> Iterator[Kernel]:
        yield self._norm(load.logits)
        yield self._linear(load.logits, self.architecture.hidden, self.architecture.vocabulary, dtype="bf16")
        yield Kernel(load.logits * self.architecture.vocabulary * 2 * _ACTIVATION, launches=3)
