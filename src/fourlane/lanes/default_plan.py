"""The default lane plan of a cluster; why its figures are what they are is in `fourlane.lanes.reasons`.

The recipe is Baidu's: expert all-to-all in a queue of its own with the largest weight and buffer, ECN
off, adaptive routing on; KV cache on a second network where there is one. Not for judging a plan
(`fourlane.lanes.check`): a plan people wrote themselves passes or fails on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fourlane.lanes.buffers import switch_budget
from fourlane.lanes.plan import DSCPS, Ecn, Lane, LanePlan
from fourlane.lanes.ports import switches
from fourlane.spec.hardware import nic_models
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.lanes.plan import Carrier
    from fourlane.spec.cluster import Cluster, Network

__all__ = ["default_plan", "spelled_ranges"]

MOST_HEADROOM = 1 / 3
"""The share of a switch's buffer that headroom may take before a lossless class is made lossy."""
_KMIN_PER_GBPS = 4000
_LEAST_KMIN = 30_000


def default_plan(cluster: Cluster) -> LanePlan:
    """Work out the plan that `fourlane lanes init` writes.

    The second lossless class (`collective`), and then the first, becomes lossy where headroom would take
    over a third of a switch's buffer; no class is lossless where a switch or NIC has no PFC.
    """
    for lossless in (("expert", "collective"), ("expert",)):
        plan = _plan(cluster, lossless=lossless)
        if _lossless_possible(cluster, plan) and not _crowded(cluster, plan):
            return plan
    return _plan(cluster, lossless=())


def spelled_ranges(dscps: Iterable[int]) -> tuple[str, ...]:
    """Write code points as an `accept` list: runs as ranges, in order."""
    runs: list[list[int]] = []
    for dscp in sorted(set(dscps)):
        if runs and dscp == runs[-1][-1] + 1:
            runs[-1].append(dscp)
        else:
            runs.append([dscp])
    return tuple(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _plan(cluster: Cluster, *, lossless: tuple[str, ...]) -> LanePlan:
    own = {kind.dscp for kind in TrafficClass}
    hpn, dcn = cluster.hpn, cluster.dcn
    trim = not lossless and all(switch.model.trimming for switch in switches(cluster) if switch.network == "hpn")
    carriers = _carriers(hpn, "nccl" if hpn.fabric == "erdma" else "deepep-v2")
    reorders = nic_models()[hpn.nic].adaptive_routing or hpn.fabric == "ethernet"
    unmarked = hpn.fabric != "roce" or (reorders and (bool(lossless) or trim))
    lanes = {
        TrafficClass.EXPERT: _lane(
            TrafficClass.EXPERT,
            weight=70 if dcn else 60,
            alpha=1.0,
            reserved=_scaled(hpn, 160, least=16_384),
            lossless="expert" in lossless,
            trim=trim,
            ecn="off" if unmarked else _marking(hpn),
            routing="adaptive" if reorders else "ecmp",
            network="hpn",
            carriers=carriers,
        ),
        TrafficClass.COLLECTIVE: _lane(
            TrafficClass.COLLECTIVE,
            weight=20,
            alpha=0.125,
            lossless="collective" in lossless,
            ecn=_marking(hpn),
            network="hpn",
            carriers=_carriers(hpn, "nccl", tcp="gloo"),
        ),
        TrafficClass.KV: _lane(
            TrafficClass.KV,
            weight=90 if dcn else 10,
            cap=None if dcn else 50,
            alpha=1.0 if dcn else 0.125,
            ecn=_marking(dcn or hpn),
            network="dcn" if dcn else "hpn",
            carriers=_carriers(dcn or hpn, "ucx", "mooncake"),
        ),
        TrafficClass.CONTROL: _lane(TrafficClass.CONTROL, cap=5, alpha=0.5, reserved=Size(8192), carriers=("sockets",)),
        TrafficClass.BULK: _lane(TrafficClass.BULK, weight=5, alpha=0.125, ecn=_marking(hpn)),
        TrafficClass.DEFAULT: _lane(
            TrafficClass.DEFAULT,
            accept=spelled_ranges(set(DSCPS) - own),
            weight=5,
            alpha=0.125,
        ),
    }
    return LanePlan(name=cluster.name, classes=lanes)


def _lane(kind: TrafficClass, **fields: Any) -> Lane:
    """Make a class with the marks of the project, weighted if a weight is among `fields`, else strict."""
    return Lane(
        dscp=kind.dscp,
        priority=kind.priority,
        queue=kind.priority,
        scheduler="dwrr" if "weight" in fields else "strict",
        **fields,
    )


def _scaled(network: Network, bytes_per_gbps: int, *, least: int) -> Size:
    """Return bytes in proportion to the rate, in whole KiB."""
    size = max(least, int(network.rate) * bytes_per_gbps // 10**9)
    return Size(-(-size // 1024) * 1024)


def _marking(network: Network) -> Ecn:
    kmin = max(_LEAST_KMIN, int(network.rate) * _KMIN_PER_GBPS // 10**9)
    return Ecn(kmin=Size(kmin), kmax=Size(4 * kmin), pmax=0.2)


def _carriers(network: Network, *rdma: Carrier, tcp: Carrier = "sockets") -> tuple[Carrier, ...]:
    return rdma if network.fabric != "ethernet" else (tcp,)


def _crowded(cluster: Cluster, plan: LanePlan) -> bool:
    budgets = [switch_budget(plan, switch) for switch in switches(cluster)]
    return any(budget.headroom_pool > MOST_HEADROOM * budget.buffer for budget in budgets)


def _lossless_possible(cluster: Cluster, plan: LanePlan) -> bool:
    """Tell whether every switch and NIC of the HPN can pause, and every port's headroom is known."""
    on_hpn = [switch for switch in switches(cluster) if switch.network == "hpn"]
    return (
        cluster.hpn.fabric == "roce"
        and nic_models()[cluster.hpn.nic].dcb
        and all(switch.model.pfc and not switch_budget(plan, switch).unknown for switch in on_hpn)
    )
