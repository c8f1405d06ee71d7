"""Services on clusters, with all that their traffic depends on and stand-ins for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fourlane.lanes.default_plan import default_plan
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import Lanes, Twin, TwinPool, Workload
from fourlane.twin.assembly_parts import Assembly, PhaseModel
from fourlane.twin.exchange.lanes import lanes_case
from fourlane.twin.exchange.setting import exchange_setting
from fourlane.twin.exchange.table import ExchangeTable

NONE: Any = None


@dataclass(frozen=True)
class FixedKv:
    """A way of KV cache with a rate."""

    out_rate: float = 20e9
    in_rate: float = 20e9
    latency_s: float = 1e-5
    source: str = "said so"

    def seconds(self, size: float) -> float:
        return self.latency_s + size / self.out_rate

    def background(self, rate: float) -> float:
        return rate / self.out_rate


def service(cluster: str, *, prefill: TwinPool, decode: TwinPool, **lanes: Any) -> Assembly:
    """Return a service whose exchange tables are empty: only where its units are and what they send is known."""
    architecture = load_architecture("deepseek-v3")
    twin = Twin(
        model="deepseek-v3", cluster=cluster, prefill=prefill, decode=decode, lanes=Lanes(**lanes), workload=Workload()
    )
    read = load_cluster(cluster)
    case = lanes_case(twin.lanes, read)
    models = {
        phase: PhaseModel(
            phase=phase,
            pool=pool,
            steps=NONE,
            memory=NONE,
            balance=NONE,
            exchange=ExchangeTable(
                exchange_setting(architecture, read, ranks=pool.ranks, phase=phase, lanes=case), (), "none"
            ),
        )
        for phase, pool in twin.pools().items()
    }
    return Assembly(
        twin=twin,
        architecture=architecture,
        cluster=read,
        hardware=NONE,
        plan=case.plan or default_plan(read),
        prefill=models["prefill"],
        decode=models["decode"],
        kv=FixedKv(),
        kv_token_bytes=70_272,
    )
