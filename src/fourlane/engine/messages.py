"""What the gateway and the ranks say to each other.

Every message is a tagged msgspec struct; `encode`/`decode` add the version. Nothing is pickled.
No torch here: the gateway imports this module. How frames are authenticated: `channel`.

A *sequence* is one attempt at one choice of one request. A retry is a new sequence whose
`token_ids` hold the prompt and all tokens already given to the client; because sampling draws
from (seed, position) alone, it goes on exactly where the lost one stopped.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from fourlane.errors import ProtocolError
from fourlane.lanes.connections import LikeConnections
from fourlane.lanes.marking import LaneMark

__all__ = [
    "VERSION",
    "BalanceStats",
    "Cancel",
    "Failed",
    "FromRank",
    "Hello",
    "KvAddress",
    "KvDelivered",
    "OverlapStats",
    "PeerLostReport",
    "Phase",
    "Prefill",
    "RankStats",
    "Regroup",
    "Regrouped",
    "Reserve",
    "Reserved",
    "Run",
    "Sampling",
    "SequenceSpec",
    "Shutdown",
    "ToRank",
    "TokenEvent",
    "Tokens",
    "decode_from_rank",
    "decode_to_rank",
    "encode",
]

VERSION = 3
T = TypeVar("T")
Phase = Literal["prefill", "decode"]
"""What a token is computed for: a prompt, or the text after it."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base: immutable, keyword-only, tagged with its class name."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen. `seed` is always set (the gateway draws one if the client did not).

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 switch their filter off.
    `logprobs` None: none wanted; n: the chosen token's and the n likeliest.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None


class SequenceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to run.

    `token_ids`: prompt, then tokens already generated (on a retry). `prompt_tokens`: how many of
    them are the client's prompt. `max_tokens` in `sampling` counts from the end of the prompt.
    """

    sequence_id: int
    token_ids: list[int]
    prompt_tokens: int
    sampling: Sampling


class KvAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a sequence's KV goes: the receiver's endpoint and its reserved pages, in order.

    `endpoint` is "tcp://ip:port" or "shm:///path/to/socket" (same host only).
    `owner` names the receiving rank, for messages to people.
    """

    endpoint: str
    blocks: list[int]
    owner: str


# gateway -> rank


class Run(_Message, frozen=True, kw_only=True):
    """To a unified rank: prefill and decode this sequence."""

    sequence: SequenceSpec


class Reserve(_Message, frozen=True, kw_only=True):
    """To a decode rank: hold pages for this sequence's KV; answer `Reserved` or `Failed`.

    Decoding starts when the KV and the first token have come from the prefill rank.
    """

    sequence: SequenceSpec


class Prefill(_Message, frozen=True, kw_only=True):
    """To a prefill rank: compute KV, send it layer by layer to `target`, give the first token."""

    sequence: SequenceSpec
    target: KvAddress


class Cancel(_Message, frozen=True, kw_only=True):
    """Drop a sequence and free its pages; no answer. Unknown ids are ignored."""

    sequence_ids: list[int]


class Regroup(_Message, frozen=True, kw_only=True):
    """Join the expert-parallel group anew: a member was replaced. Answered by `Regrouped`.

    `store` is a path (FileStore) or "host:port" (TCPStore).
    """

    generation: int
    store: str


class Shutdown(_Message, frozen=True, kw_only=True):
    """Stop now: fail what still runs, free everything, exit 0."""


ToRank = Run | Reserve | Prefill | Cancel | Regroup | Shutdown

# rank -> gateway


class Hello(_Message, frozen=True, kw_only=True):
    """First message of a rank once it can serve. Sent again after a lost connection.

    A rank that has loaded but is in no expert-parallel group yet says `generation` -1 and waits
    for `Regroup`; `rendezvous` is then where its group can meet if it is the group's first rank:
    "host:port", the port being the first of a range from which the gateway takes one a generation.
    `marks` is what it puts on its sockets, `connections` those it has opened on its lanes so far.
    """

    role: Literal["prefill", "decode", "unified"]
    rank: int
    pid: int
    host: str
    generation: int
    kv_blocks: int
    block_size: int
    max_length: int
    kv_endpoint: str | None
    memory_bytes: int
    weights_bytes: int
    load_seconds: float
    experts: int
    layers: int
    rendezvous: str | None = None
    marks: list[LaneMark] = []
    connections: list[LikeConnections] = []


class Reserved(_Message, frozen=True, kw_only=True):
    """Pages are held for a sequence."""

    sequence_id: int
    target: KvAddress


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One token of one sequence. `index` counts from 0 at the first token after the prompt.

    `finish` is None while the sequence goes on; "stop" (end-of-sequence or stop token, which
    is included) or "length". `top` holds (token id, log-probability), likeliest first.
    """

    sequence_id: int
    index: int
    token_id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
    finish: Literal["stop", "length"] | None = None


class Tokens(_Message, frozen=True, kw_only=True):
    """Everything one step produced."""

    events: list[TokenEvent]


class Failed(_Message, frozen=True, kw_only=True):
    """A sequence cannot go on. `retryable`: another attempt may succeed (lost KV, evicted...)."""

    sequence_id: int
    reason: str
    retryable: bool


class KvDelivered(_Message, frozen=True, kw_only=True):
    """The receiver has acknowledged a sequence's whole KV (sent by the prefill rank).

    Units:
        transfer_s, hidden_s: seconds; hidden_s is the part of transfer_s that lay before the
        sequence's prefill computation ended.
        cached_tokens: prompt tokens found in the prefix cache.
    """

    sequence_id: int
    bytes: int
    transfer_s: float
    hidden_s: float
    cached_tokens: int
    target: str


class BalanceStats(msgspec.Struct, frozen=True, kw_only=True):
    """How evenly a rank's group computed, and what moving experts took; totals since the rank began.

    `sum_of_max_split_L` [layers]: over the steps, the rows of the fullest rank as they were split over
    replicas; `sum_of_max_equal_L`: the same had each expert's tokens been spread evenly over its
    replicas; `sum_of_mean_L`: the rows of a rank on average. Max over mean of any span of time is the
    quotient of the differences. The sums grow by the same on all ranks of a group.
    `placement_version` counts the layers committed since the placement the deployment began with.
    `experts_moved`, `migration_bytes`, `migration_s`: what this rank received, and how long that was
    under way. `migrations_failed`: layers given up. `forecast_balance`, `realised_balance`: of the last
    completed migration, max over mean as it was to be expected and as it then came; None before.
    """

    sum_of_max_split_L: list[int] = []
    sum_of_max_equal_L: list[int] = []
    sum_of_mean_L: list[float] = []
    placement_version: int = 0
    layers_migrated: int = 0
    experts_moved: int = 0
    migration_bytes: int = 0
    migration_s: float = 0.0
    migrations_failed: int = 0
    forecast_balance: float | None = None
    realised_balance: float | None = None


class OverlapStats(msgspec.Struct, kw_only=True):
    """In which mode a rank's steps ran and why; totals since the rank began.

    `mode`, `why`: of its last step. `steps` by mode; `trial_steps`: of them, those run in the other mode to
    see what it takes. `predicted_gain`: by what factor two streams were last predicted to be faster,
    `measured_gain`: were last seen to be; None before.

    Units:
        communication_s: seconds its communication thread was at work in steps of two streams; hidden_s:
        of them, those in which the rank computed.
    """

    mode: str = "single"
    why: str = "unmeasured"
    steps: dict[str, int] = msgspec.field(default_factory=lambda: {"single": 0, "dual": 0})
    trial_steps: int = 0
    communication_s: float = 0.0
    hidden_s: float = 0.0
    predicted_gain: float | None = None
    measured_gain: float | None = None


class RankStats(_Message, frozen=True, kw_only=True):
    """Gauges and running totals of a rank; sent at most five times a second, at least every two.

    Units:
        *_s: seconds since the rank began; step_exchange_times: steps by the time they waited for
        the exchange, in the buckets of `durations`; lane_bytes: bytes sent by traffic class;
        expert_tokens: by phase, how many of this rank's own tokens were routed to each expert, as totals
        (flattened row-major [layers, experts]; a phase is left out while it does not change). Over all
        ranks this is what was computed, wherever it was.
    """

    waiting: int
    running: int
    reserved: int
    queued_tokens: int
    free_blocks: int
    total_blocks: int
    steps: int
    step_s: float
    exchange_s: float
    step_exchange_times: list[int] = []
    idle_steps: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    evictions: int
    lane_bytes: dict[str, int]
    expert_tokens: dict[Phase, list[int]] = {}
    balance_max_over_mean: float
    balance: BalanceStats = BalanceStats()
    overlap: OverlapStats = msgspec.field(default_factory=OverlapStats)
    memory_bytes: int
    connections: list[LikeConnections] = []


class PeerLostReport(_Message, frozen=True, kw_only=True):
    """An exchange failed in this rank; it keeps its sequences and waits for `Regroup`."""

    generation: int
    step: int
    detail: str


class Regrouped(_Message, frozen=True, kw_only=True):
    """This rank is in the new group and goes on."""

    generation: int


FromRank = Hello | Reserved | Tokens | Failed | KvDelivered | RankStats | PeerLostReport | Regrouped

_encoder = msgspec.msgpack.Encoder()
_to_rank = msgspec.msgpack.Decoder(ToRank)
_from_rank = msgspec.msgpack.Decoder(FromRank)
_PREFIX = VERSION.to_bytes(2, "big")


def encode(message: ToRank | FromRank) -> bytes:
    """Encode a message: two bytes of version, then msgpack."""
    return _PREFIX + _encoder.encode(message)


def decode_to_rank(frame: bytes) -> ToRank:
    """Decode what the gateway sent.

    Raises:
        ProtocolError: another version, or not such a message.
    """
    return _decode(_to_rank, frame)


def decode_from_rank(frame: bytes) -> FromRank:
    """Decode what a rank sent.

    Raises:
        ProtocolError: another version, or not such a message.
    """
    return _decode(_from_rank, frame)


def _decode(decoder: msgspec.msgpack.Decoder[T], frame: bytes) -> T:
    if frame[:2] != _PREFIX:
        found = int.from_bytes(frame[:2], "big") if len(frame) >= 2 else None
        raise ProtocolError(f"message version: expected {VERSION}, got {found}; run one version of fourlane everywhere")
    try:
        return decoder.decode(memoryview(frame)[2:])
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"malformed message: {error}") from error
