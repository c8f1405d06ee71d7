"""Proofs about networks: that they exist, are really two, and can carry what a plan sends over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.checks.case import Found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.checks.case import Case

__all__ = ["carriers_run_on_the_fabric", "dscp_applies", "networks_exist", "two_networks_are_two"]

_NEEDS_RDMA = frozenset({"deepep-v1", "deepep-v2", "nvshmem"})


def networks_exist(case: Case) -> Iterator[Found]:
    """A class's network is one the cluster has."""
    for kind, lane in case.plan.classes.items():
        if lane.network == "dcn" and case.cluster.dcn is None:
            found = f'"dcn", but cluster {case.cluster.name} has the hpn only'
            mend = 'set network = "hpn" (with a low weight, a cap and ECN), or give the cluster a table [dcn]'
            yield Found("error", f"classes.{kind.value}.network", found, mend)


def two_networks_are_two(case: Case) -> Iterator[Found]:
    """The second network has interfaces and devices of its own."""
    dcn = case.cluster.dcn
    if dcn is None:
        return
    for field in ("interfaces", "devices"):
        shared = sorted(set(getattr(dcn, field)) & set(getattr(case.cluster.hpn, field)))
        if shared:
            found = f"{', '.join(shared)} is on the hpn too: classes on the dcn would share its links"
            yield Found("error", f"cluster: dcn.{field}", found, "name the NICs of the second network")


def dscp_applies(case: Case) -> Iterator[Found]:
    """On InfiniBand, where service levels and not DSCPs choose the lane, that is told."""
    for name, network in case.cluster.networks().items():
        if network.fabric == "infiniband":
            found = "InfiniBand has service levels and virtual lanes; DSCP, PFC and ECN of this plan do not apply there"
            mend = "configure virtual lanes with the subnet manager; libraries take the priority as service level"
            yield Found("warning", f"network {name}", found, mend)


def carriers_run_on_the_fabric(case: Case) -> Iterator[Found]:
    """Libraries that need RDMA between GPUs run where there is RDMA."""
    for kind, lane, name, network in case.lanes():
        for carrier in lane.carriers:
            if carrier in _NEEDS_RDMA and network.fabric in ("ethernet", "erdma"):
                found = f'{carrier} needs RDMA that GPUs drive, and the fabric of {name} is "{network.fabric}"'
                mend = 'carry it with "nccl"' if network.fabric == "erdma" else 'carry it with "gloo" or "nccl"'
                yield Found("warning", f"classes.{kind.value}.carriers", found, mend)
