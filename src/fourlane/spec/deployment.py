"""What a service is made of: model, gateway, pools, KV transfer, exchange, balance of experts, overlap.

Read from TOML by `fourlane.spec.load`. Not for hardware or networks (`cluster`, `hardware`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fourlane.units import Duration, Rate, Size

__all__ = [
    "Balance",
    "Deployment",
    "Exchange",
    "Gateway",
    "KvCache",
    "KvTransfer",
    "KvTransport",
    "Model",
    "Overlap",
    "Pool",
]

KvTransport = Literal["auto", "tcp", "shared_memory", "nixl", "mooncake"]


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which checkpoint is served.

    `path` is a folder in the Hugging Face layout, or "bundled". `weights` is the dtype the
    weights are held in; activations, attention and KV are float32 on CPU.
    """

    path: str = "bundled"
    name: str | None = None
    weights: Literal["auto", "float32", "bfloat16"] = "auto"
    max_length: int | None = None


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side: address, limits, deadlines."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_queued_requests: int = 256
    max_body: Size = Size(8 << 20)
    request_timeout: Duration = Duration.parse("600s")
    shutdown_deadline: Duration = Duration.parse("20s")
    ready_timeout: Duration = Duration.parse("300s")
    max_retries: int = 3
    control: str | None = None
    """Address ranks connect to, "tcp://host:port"; None: a UNIX socket in the run folder."""


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A set of like ranks: data-parallel attention, expert-parallel MoE.

    `expert_parallel` ranks share one copy of the experts; it divides `ranks` (None: all of them).
    `device` "cuda" gives rank r of the pool GPU r, "cuda:N" GPU N + r, starting over after the
    last: so pools share GPUs or have their own. `launch = "external"` waits for `fourlane worker`
    processes instead of starting ranks.
    """

    ranks: int = 1
    expert_parallel: int | None = None
    device: str = "cpu"
    threads: int = 1
    chunk_tokens: int = 512
    max_running: int = 256
    kv_memory: Size = Size(256 << 20)
    prefix_cache: bool = True
    launch: Literal["local", "external"] = "local"


class KvCache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The page size, equal in every pool (tokens per page)."""

    block_size: int = 16


class KvTransfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How KV pages go from prefill to decode.

    `transport` "auto" takes shared memory within a host, and between hosts NIXL or Mooncake where
    both have it and an RDMA device, else TCP. `address` is the local IP to bind, on the interface KV
    traffic shall use, `more_addresses` those of further interfaces: TCP stripes its chunks over all
    of them, `streams` connections each, and goes on without those that fail. `ports` is a range
    "first-last", or None for any free port. `devices` are the RDMA devices ("mlx5_0:1") or
    interfaces that NIXL and Mooncake shall use, empty for those behind `address`; `gid_index` is the
    RoCE GID to use, None for the library's choice.
    """

    transport: KvTransport = "auto"
    address: str = "127.0.0.1"
    more_addresses: tuple[str, ...] = ()
    streams: int = 1
    devices: tuple[str, ...] = ()
    gid_index: int | None = None
    ports: str | None = None
    timeout: Duration = Duration.parse("30s")


class Exchange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How ranks of a pool exchange tokens among experts.

    `implementation` "shared_memory" is for ranks of one host, on CPUs: rows are written straight to their
    final place in the receiver's memory, and no socket carries them; "tcp" is own sockets, full duplex and
    marked as expert traffic, for hosts without RDMA; "torch_all_to_all" gloo on CPUs and NCCL where each
    rank has a GPU; "deepep" the kernels of DeepEP, for ranks that have a GPU each, with bfloat16 activations;
    "symmetric_memory" PyTorch's, for ranks that have a GPU each in one NVLink domain of one host.
    "auto" takes "torch_all_to_all" for a pool on GPUs, and on CPUs "shared_memory" for one that is launched
    here and "tcp" for external ranks. `address` is the local IP to bind, on the interface expert traffic
    shall use.

    `dispatch` is the form in which tokens travel to their experts: "activations" as they are, "float8" a
    byte an element with a scale for each 128 of them, a quarter of float32's bytes and half of bfloat16's.
    With "float8" activations are rounded (to 4 significant bits), so tokens may differ from those of
    "activations"; they are the same for any number of ranks and any placement all the same. Outputs come
    back as they are either way.

    `hierarchical`: whether a token goes once to each other node and is forwarded to its experts' ranks
    there, in place of once to each expert ("tcp" and "torch_all_to_all", groups of equally many ranks on
    each of several hosts). "auto": batch by batch, where that is expected to take less time.

    `deepep` is the interface of DeepEP to use: "v2" (`ElasticBuffer`), "v1" (`Buffer`), or "auto" for the
    newer one that is installed. Of "v1", a step takes the low-latency kernels if no rank of the group has
    more than `low_latency_tokens` tokens in it, and the normal kernels otherwise; 0: always normal.
    """

    implementation: Literal["auto", "torch_all_to_all", "tcp", "shared_memory", "deepep", "symmetric_memory"] = "auto"
    dispatch: Literal["activations", "float8"] = "activations"
    hierarchical: Literal["auto", "always", "never"] = "auto"
    deepep: Literal["auto", "v1", "v2"] = "auto"
    low_latency_tokens: int = 128
    address: str = "127.0.0.1"
    timeout: Duration = Duration.parse("30s")


class Balance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the experts of every expert-parallel group are kept in balance; without this table they stay in order.

    `redundant_experts` are replicas a layer beyond one of each expert, rounded up so that all ranks of
    a group hold equally many. `initial` is a placement file, relative to the deployment file, that
    groups of as many ranks as it has begin with; None, and for other groups: experts in order.
    `split`: each batch's tokens are split over an expert's replicas so that the fullest rank has least;
    without, evenly.

    `rebalance`: a group looks at the last `interval_steps` steps, in windows of `window_steps`, and
    moves experts while it serves: the layers whose expected max/mean falls by `min_gain` or more, the
    most promising first, in each at most `moves` experts received by all ranks together. A rank costs
    `cost_tokens` for each token and `cost_activated` for each expert that has at least one, in parts
    of a token: tokens are right where computing takes the time, activated experts where reading
    weights does.

    Weights travel over connections of class `bulk`, at most `bulk_rate` out of each rank (None: as fast
    as they go). A layer that has not arrived everywhere after `migration_timeout` is given up; its
    experts stay where they are.
    """

    redundant_experts: int = 0
    initial: str | None = None
    split: bool = True
    rebalance: bool = True
    interval_steps: int = 2000
    window_steps: int = 100
    min_gain: float = 0.02
    moves: int = 32
    cost_tokens: float = 1.0
    cost_activated: float = 0.0
    bulk_rate: Rate | None = None
    migration_timeout: Duration = Duration.parse("30s")


class Overlap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether steps run as two micro-batches, of which one communicates while the other computes.

    `mode` "auto" decides step by step from what computing and communicating take, and tries where a gain
    looks possible; "never" and "always" decide nothing. A step of fewer than `min_tokens` tokens a rank is
    not cut in two under "auto", nor where less than `min_gain` is gained (0.03: 3 %).
    """

    mode: Literal["auto", "never", "always"] = "auto"
    min_tokens: int = 16
    min_gain: float = 0.03


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One service. Either `prefill` and `decode`, or `unified` (both phases in one pool).

    `lanes` is the file of a lane plan, relative to the deployment file: it says which mark each
    class of traffic carries. None: the marks of the default plan.
    """

    lanes: str | None = None
    model: Model = Model()
    gateway: Gateway = Gateway()
    prefill: Pool | None = None
    decode: Pool | None = None
    unified: Pool | None = None
    kv_cache: KvCache = KvCache()
    kv_transfer: KvTransfer = KvTransfer()
    exchange: Exchange = Exchange()
    balance: Balance | None = None
    overlap: Overlap = Overlap()

    def pools(self) -> dict[str, Pool]:
        """Return the pools there are, by role, in a fixed order."""
        roles = {"prefill": self.prefill, "decode": self.decode, "unified": self.unified}
        return {role: pool for role, pool in roles.items() if pool is not None}
