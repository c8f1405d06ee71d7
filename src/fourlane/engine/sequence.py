"""One sequence on one rank: its tokens, its pages, how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fourlane.policy.prefix import prefix_hashes

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.contract import KvStream
    from fourlane.engine.messages import KvAddress, Sampling, SequenceSpec

__all__ = ["FinishReason", "Sequence", "finish_reason"]

FinishReason = Literal["stop", "length"]


@dataclass(slots=True, eq=False)
class Sequence:
    """A sequence being computed.

    `token_ids` are all tokens known; the first `computed` of them have their KV in `blocks`.
    `target` is set on prefill ranks: the sequence leaves after its first token, through `stream`.
    """

    sequence_id: int
    token_ids: list[int]
    prompt_tokens: int
    sampling: Sampling
    target: KvAddress | None = None
    stream: KvStream | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    cached_tokens: int = 0
    named_pages: int = 0
    sent_L: list[int] = field(default_factory=list)
    """How many tokens' KV of each layer, from the beginning, has been queued for sending; of later layers none."""
    _names: list[bytes] | None = None

    @classmethod
    def of(cls, spec: SequenceSpec, *, target: KvAddress | None = None) -> Sequence:
        """Begin a sequence from its message."""
        return cls(spec.sequence_id, list(spec.token_ids), spec.prompt_tokens, spec.sampling, target)

    @property
    def pending(self) -> int:
        """Return the tokens known but not yet computed."""
        return len(self.token_ids) - self.computed

    @property
    def output_tokens(self) -> int:
        """Return the tokens after the client's prompt, earlier attempts included."""
        return len(self.token_ids) - self.prompt_tokens

    def page_names(self, block_size: int) -> list[bytes]:
        """Return the prefix names of the full pages of the tokens this sequence began with."""
        if self._names is None:
            self._names = prefix_hashes(self.token_ids, block_size)
        return self._names


def finish_reason(
    sequence: Sequence, token_id: int, *, eos_ids: frozenset[int], max_length: int
) -> FinishReason | None:
    """Return why a sequence ends with this token, already appended: "stop", "length" or None."""
    sampling = sequence.sampling
    ends = token_id in sampling.stop_token_ids or (not sampling.ignore_eos and token_id in eos_ids)
    if ends and sequence.output_tokens > sampling.min_tokens:
        return "stop"
    if sequence.output_tokens >= sampling.max_tokens or len(sequence.token_ids) >= max_length:
        return "length"
    return None
