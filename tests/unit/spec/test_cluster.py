"""Cluster files: the catalog's are sound, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest

import fourlane
from fourlane.errors import SpecError
from fourlane.lanes.ports import switches
from fourlane.spec.hardware import gpu_models, latencies, nic_models, switch_models
from fourlane.spec.load import load_cluster, render
from fourlane.units import Duration, Length

CATALOG = sorted((Path(fourlane.__file__).parent / "spec/catalog/clusters").glob("*.toml"))


@pytest.mark.parametrize("file", CATALOG, ids=lambda file: file.stem)
def test_clusters_of_the_catalog_are_sound_and_fit_their_switches(file: Path) -> None:
    cluster = load_cluster(file)
    assert cluster == load_cluster(file.stem)
    for switch in switches(cluster):
        assert switch.ports[-1].lane + switch.ports[-1].lanes <= switch.model.ports * switch.model.lanes_per_port
        assert len({port.lane for port in switch.ports}) == len(switch.ports)


def test_every_model_of_the_catalog_names_its_source() -> None:
    times = latencies()
    models = [*switch_models().values(), *nic_models().values(), *gpu_models().values()]
    assert all(each.source for each in [*models, *times.chips.values(), *times.nics.values(), *times.links.values()])


def test_every_switch_chip_and_every_nic_of_the_catalog_has_a_latency_or_says_that_it_is_assumed() -> None:
    times = latencies()
    assert {model.chip for model in switch_models().values()} <= times.chips.keys()
    assert nic_models().keys() == times.nics.keys()
    for each in [*times.chips.values(), *times.nics.values()]:
        assert each.published != ("assumed" in each.source or each.source.startswith("as "))


def test_a_link_of_20_m_with_forward_error_correction_takes_200_ns() -> None:
    assert latencies().links["pam4-rs544"].delay(Length.parse("20m")) == Duration.parse("200ns")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("hpn.rate=400", "hpn.rate: expected a rate such as"),
        ("hpn.rate=800Gbps", "hpn.rate: expected at most 400Gbps, the rate of connectx-7, got 800Gbps"),
        ("hpn.nic=connectx7", 'hpn.nic: expected one of connectx-6, connectx-7, erdma, ethernet, got "connectx7" (did'),
        ("hpn.leaf.switch=sn9", "hpn.leaf.switch: expected one of"),
        ('hpn.interfaces=["a b"]', "hpn.interfaces[0]: expected a name of up to 15"),
        ('hpn.interfaces=["a;reboot"]', "hpn.interfaces[0]: expected a name of up to 15"),
        ('hpn.interfaces=["eth0","eth0"]', "hpn.interfaces: expected different names"),
        ('hpn.devices=["mlx5_0"]', "hpn.devices: expected a device for each of 8 interfaces, got 1"),
        ("hpn.leaf.down_cable=5", "hpn.leaf.down_cable: expected a length such as"),
        ("hpn.leaf.up_ports=0", "hpn.leaf.up_ports: expected at least 1 with a spine, got 0"),
        ("hpn.spine.up_ports=2", "hpn.spine.up_ports: expected 0: there is no tier above a spine without"),
        ("hpn.spine=", "hpn.spine: expected a table [spine]"),
        ("hpn.spine.latency=500", "hpn.spine.latency: expected a duration such as"),
        ("hpn.link=fibre", "hpn.link: expected one of no-fec, pam4-rs544"),
        ("gpu=h300", "gpu: expected one of a100, ascend-910c, b200, gb200, h100"),
        ("hpn.planes=0", "hpn.planes: expected at least 1, got 0"),
        ("hpn.planes=3", "hpn.interfaces: expected one for each of 3 planes of every NIC, got 8"),
        ("hpn.planes=16", "hpn.leaf.count: expected a multiple of 16, for 16 planes of equal size, got 8"),
        ("hpn.pods=2", "hpn.pods: expected 1 without a superspine tier"),
        ("hpn.spines=rail", "hpn.spines: expected"),
        (
            'hpn.superspine={switch="sn5600",count=2,down_ports=64}',
            "hpn.spine.up_ports: expected at least 1 with a superspine tier, got 0",
        ),
        ("hpn.mtu=64B", "hpn.mtu: expected 1280B to 9216B"),
        ("servers=0", "servers: expected at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(change: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(render(load_cluster("h800-ft")))
    with pytest.raises(SpecError) as caught:
        load_cluster(file, overrides=[change])
    assert any(message in fault for fault in caught.value.faults)


def test_an_unknown_name_lists_the_clusters_there_are() -> None:
    with pytest.raises(SpecError, match="dual-plane-10k, h800-10k, h800-ft, lab, low-latency, one-network"):
        load_cluster("h900")
