"""What transfer libraries are told: NIC, GID and mark, each in the library's own unit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from fourlane.engine.kv_transfer.library_env import (
    KvNetwork,
    apply,
    check_devices,
    mooncake_env,
    nixl_env,
    rdma_devices,
)
from fourlane.errors import SpecError
from fourlane.lanes.interfaces import interface_of
from fourlane.lanes.marking import LaneMark
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two RDMA devices: one behind the loopback interface, one behind eth9."""
    for device, interface in (("mlx5_0", "lo"), ("mlx5_1", "eth9")):
        (tmp_path / device / "device" / "net" / interface).mkdir(parents=True)
    (tmp_path / "bare_0").mkdir()
    return tmp_path


def network(sysfs: Path, *devices: str, gid_index: int | None = None) -> KvNetwork:
    return KvNetwork.of("127.0.0.1", devices=devices, gid_index=gid_index, timeout_s=2.5, sysfs=sysfs)


def test_devices_are_found_with_their_interfaces(sysfs: Path) -> None:
    assert rdma_devices(sysfs) == {"bare_0": [], "mlx5_0": ["lo"], "mlx5_1": ["eth9"]}
    assert rdma_devices(sysfs / "nothing") == {}


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None


def test_the_mark_is_the_tos_byte_of_dscp_18_declared_ecn_capable() -> None:
    assert LaneMark.default(TrafficClass.KV).rdma_tos == 18 * 4 + 2


def test_without_devices_named_the_one_behind_the_kv_address_is_taken(sysfs: Path) -> None:
    found = network(sysfs)
    assert (found.devices, found.rdma) == (("mlx5_0:1",), True)


def test_without_rdma_the_interface_of_the_kv_address_is_taken(tmp_path: Path) -> None:
    found = network(tmp_path)
    assert (found.devices, found.rdma) == (("lo",), False)
    assert nixl_env(found)["UCX_NET_DEVICES"] == "lo"


def test_nixl_gets_nics_mark_and_gid_as_ucx_wants_them(sysfs: Path) -> None:
    assert nixl_env(network(sysfs, "mlx5_0:1", "mlx5_1:1", gid_index=5)) == {
        "NIXL_LOG_LEVEL": "WARN",
        "UCX_LOG_FILE": "stderr",
        "UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:1",
        "UCX_MAX_RMA_RAILS": "2",
        "UCX_IB_TRAFFIC_CLASS": "74",
        "UCX_IB_GID_INDEX": "5",
    }


def test_without_rdma_nixl_is_given_no_mark_which_it_could_not_set(tmp_path: Path) -> None:
    found = nixl_env(network(tmp_path, gid_index=1))
    assert found["UCX_MODULES"] == "^ib"
    assert not {"UCX_IB_TRAFFIC_CLASS", "UCX_IB_GID_INDEX"} & set(found)


def test_mooncake_gets_mark_gid_and_timeouts_as_it_wants_them(sysfs: Path) -> None:
    found = mooncake_env(network(sysfs, "mlx5_1:1", gid_index=3))
    assert found["MC_IB_TC"] == "74"
    assert found["MC_GID_INDEX"] == "3"
    assert found["MC_TCP_PROGRESS_TIMEOUT_SEC"] == found["MC_SLICE_TIMEOUT"] == "3"
    assert "MC_FORCE_TCP" not in found


def test_without_rdma_mooncake_is_held_to_tcp_at_the_kv_address(tmp_path: Path) -> None:
    found = mooncake_env(network(tmp_path))
    assert (found["MC_FORCE_TCP"], found["MC_TCP_BIND_ADDRESS"]) == ("1", "127.0.0.1")
    assert "MC_IB_TC" not in found
    assert mooncake_env(KvNetwork.of("::1", timeout_s=1, sysfs=tmp_path))["MC_USE_IPV6"] == "1"


def test_devices_that_are_not_here_are_refused_with_those_that_are(sysfs: Path) -> None:
    check_devices(["mlx5_0:1", "mlx5_1", "lo"], sysfs=sysfs)
    with pytest.raises(SpecError) as caught:
        check_devices(["mlx5_0:1", "mlx5_7:1", "lo:1"], sysfs=sysfs)
    first, second = caught.value.faults
    assert first.startswith("kv_transfer.devices[1]: expected an RDMA device (bare_0, mlx5_0, mlx5_1) or an interface")
    assert first.endswith('of this host, got "mlx5_7:1"')
    assert second.endswith('got "lo:1"')


def test_what_is_set_already_wins_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    environ = {"MC_IB_TC": "72", "MC_GID_INDEX": "3"}
    wanted = {"MC_IB_TC": "74", "MC_GID_INDEX": "3", "MC_LOG_LEVEL": "WARNING"}
    held = apply(wanted, name="decode-0", loaded=False, environ=environ)
    assert environ == held == {"MC_IB_TC": "72", "MC_GID_INDEX": "3", "MC_LOG_LEVEL": "WARNING"}
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["decode-0: MC_IB_TC=72 was set before and wins; the deployment asks for 74"]
    assert "decode-0: MC_IB_TC=72 MC_GID_INDEX=3 MC_LOG_LEVEL=WARNING" in caplog.text


def test_a_library_that_is_loaded_already_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    apply({}, name="decode-0", loaded=True, environ={})
    assert "was loaded before its environment was set" in caplog.text
