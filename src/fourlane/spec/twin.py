"""What the twin simulates: a service, the cluster it runs on, its load, and what is assumed of both.

Read from TOML by `fourlane.spec.load.load_twin`. Fields that mean the same are named as in `fourlane.spec.deployment`.
Not for how any of it is worked out (`fourlane.twin`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fourlane.units import Duration, Size

__all__ = [
    "Assumptions",
    "Experts",
    "Fault",
    "Lanes",
    "Slo",
    "Twin",
    "TwinPool",
    "Workload",
]


class TwinPool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Like units of one phase.

    A unit is an expert-parallel group: `ranks` GPUs that step together and share one copy of the experts, attention
    data-parallel, every rank with sequences and a KV cache of its own.

    `kv_memory`: of a rank; None: what weights and reserve leave of its memory. `redundant_experts`: replicas a layer
    beyond one of each expert, all ranks together, rounded up so that ranks hold equally many. `overlap`: one stream,
    two, or whichever is faster for the step ("auto").

    Units:
        chunk_tokens: most tokens a step, a rank; max_running: sequences a rank.
    """

    units: int = 1
    ranks: int = 8
    chunk_tokens: int = 8192
    max_running: int = 256
    kv_memory: Size | None = None
    prefix_cache: bool = True
    redundant_experts: int = 0
    overlap: Literal["auto", "never", "always"] = "auto"


class Lanes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the network does with expert and KV traffic.

    The cluster's default lane plan, or the one in the file `plan`, changed as the other fields say (None: as the plan
    has it): how experts are routed; whether they have their own queue, weight and buffer or share one with all classes;
    whether that queue marks ECN (and senders slow down by DCQCN); which network KV cache travels on.
    """

    plan: str | None = None
    routing: Literal["ecmp", "adaptive", "spray"] | None = None
    expert_queue: Literal["own", "shared"] | None = None
    ecn: bool | None = None
    kv: Literal["hpn", "dcn"] | None = None


class Experts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which experts tokens choose, and what is done about it.

    `popularity`: "uniform"; "zipf:EXPONENT" (1.2: the field's usual power law); "lognormal", drawn like published loads
    (`policy.load_generator`); or a file of recorded loads (`fourlane experts` reads the same). `lean`: how far batches
    depart from it, coefficient of variation of an expert's share from batch to batch. `placement` "linear": experts in
    order; "balanced": placed by `policy.placement` for the popularity; "hierarchical": so, too, but every group of
    experts in one node, as public engines do where groups divide by nodes. `split`: each batch's tokens are split over
    replicas so that the fullest rank has least (`policy.token_split`); without: evenly. `forced`: every rank gets the
    same, as in published profiles ("forced balance"); then the rest is of no account.
    """

    popularity: str = "lognormal"
    lean: float = 0.1
    placement: Literal["linear", "balanced", "hierarchical"] = "balanced"
    split: bool = True
    forced: bool = False


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests: a trace file, or drawn lengths at a rate (open loop) or at a concurrency (closed loop).

    `input_len`, `output_len`: "128", "64..256", "lognormal:MEDIAN/P99", as `fourlane bench serve` takes them.
    `burstiness`: coefficient of variation of the gaps, 1 Poisson. `trace`: Azure .csv or Mooncake .jsonl; `speed` 2
    plays it twice as fast. `rate` in requests a second. `shared_prefix`: tokens that all drawn prompts begin with.
    `requests`: how many are simulated (of a trace: the first so many; None: all; of drawn ones as many as come in 30 s,
    2,000 at least).
    """

    rate: float | None = None
    concurrency: int | None = None
    requests: int | None = None
    input_len: str = "4096"
    output_len: str = "512"
    shared_prefix: int = 0
    burstiness: float = 1.0
    trace: str | None = None
    speed: float = 1.0
    warmup: int = 0


class Slo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request must meet to count as goodput: time to first token, mean time per further token.

    `share`: of requests that must meet it for the service to.
    """

    ttft: Duration | None = None
    tpot: Duration | None = None
    share: float = 0.9


class Assumptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What cannot be worked out from model and hardware, and so is said. None: the hardware profile's figure.

    `mtp_tokens` are drafted a step (0: no multi-token prediction), each accepted with `mtp_acceptance` if those before
    it were: workload data. `sm_share`: of a GPU's processors, taken by communication while it is under way, by phase.
    `micro_batch_inefficiency`: by what share two halves take longer to compute than the whole (beyond what the
    roofline knows). `step_overhead`: on the host, each step, not hidden.
    """

    dispatch: Literal["fp8", "bf16", "fp32"] | None = None
    weights: Literal["fp8", "int8", "bf16", "fp32"] | None = None
    kv: Literal["fp8", "bf16", "fp32"] = "bf16"
    mtp_tokens: int = 0
    mtp_acceptance: float = 0.7
    sm_share_prefill: float | None = None
    sm_share_decode: float | None = None
    micro_batch_inefficiency: float | None = None
    step_overhead: Duration | None = None
    zero_compute: bool = False
    """Computing takes no time: what is left is what the network bounds."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that fails at `at` and is mended `lasts` later (None: never).

    `kind` and `target`: "rank": "decode/3" (its unit stands still until mended, then `recovery` longer; its sequences
    are retried elsewhere); "link": "leaf3-spine1"; "switch": "spine0"; "kv": "prefill/0" (the unit's KV path is cut).
    """

    at: Duration
    lasts: Duration | None = None
    kind: Literal["rank", "link", "switch", "kv"]
    target: str
    recovery: Duration = Duration.parse("30s")


class Twin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One service on one cluster under one load.

    `model`: of the catalog, a Hugging Face folder or config.json, or an architecture file. `cluster`: of the catalog,
    or a cluster file. `hardware`: a GPU of the catalog or a hardware profile (`fourlane twin calibrate`); None: the
    cluster's GPU.
    """

    name: str = "twin"
    model: str
    cluster: str
    hardware: str | None = None
    prefill: TwinPool
    decode: TwinPool
    lanes: Lanes = Lanes()
    experts: Experts = Experts()
    workload: Workload
    slo: Slo = Slo()
    assumptions: Assumptions = Assumptions()
    faults: tuple[Fault, ...] = ()
    block_size: int = 64
    seed: int = 0

    def pools(self) -> dict[Literal["prefill", "decode"], TwinPool]:
        """Return both pools by phase."""
        return {"prefill": self.prefill, "decode": self.decode}

    @property
    def gpus(self) -> int:
        """Return the GPUs of all units."""
        return sum(pool.units * pool.ranks for pool in self.pools().values())
