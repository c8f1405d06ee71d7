"""Which transport is taken, and what is refused at the start."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from kv_lanes import GEOMETRY, SECRET, Ending, make_kv, missing, send_all

from fourlane.engine.kv_transfer import make_receiver, make_sender, select
from fourlane.engine.kv_transfer.storage import allocate_kv
from fourlane.engine.kv_transfer.tcp import tcp_receiver
from fourlane.engine.messages import KvAddress
from fourlane.engine.rank_config import RankConfig
from fourlane.errors import EnvironmentMissing, SpecError, TransferError

if TYPE_CHECKING:
    from pathlib import Path


def config(run_dir: Path, **changes: object) -> RankConfig:
    base = RankConfig(
        role="decode",
        rank=0,
        ranks=1,
        model_path="nowhere",
        control_endpoint=f"ipc://{run_dir}/control",
        secret_file="nowhere",
        run_dir=str(run_dir),
        kv_timeout_s=5.0,
    )
    return msgspec.structs.replace(base, **changes)


@pytest.mark.parametrize(
    ("transport", "control", "shared", "scheme"),
    [
        ("auto", "ipc:///run/control", True, "shm"),
        ("auto", "tcp://10.0.0.1:5000", True, "tcp"),
        ("auto", "ipc:///run/control", False, "tcp"),
        ("tcp", "ipc:///run/control", True, "tcp"),
        ("shared_memory", "tcp://10.0.0.1:5000", True, "shm"),
    ],
)
def test_the_transport_follows_the_deployment_and_kv_arrives(
    tmp_path: Path, transport: str, control: str, scheme: str, *, shared: bool
) -> None:
    settings = config(tmp_path, kv_transport=transport, control_endpoint=control)
    storage = allocate_kv(GEOMETRY, "cpu", shared=shared)
    receiver = make_receiver(settings, storage, GEOMETRY, secret=SECRET)
    sender = make_sender(config(tmp_path, role="prefill"), GEOMETRY, secret=SECRET)
    try:
        assert receiver.endpoint.startswith(f"{scheme}://")
        arrived, sent = Ending(), Ending()
        receiver.expect(1, [0, 1], tokens=8, on_complete=arrived, on_failed=arrived)
        target = KvAddress(endpoint=receiver.endpoint, blocks=[0, 1], owner="decode-0")
        send_all(sender.open(1, target, on_delivered=sent, on_failed=sent), make_kv(8))
        assert arrived.wait() == 7
    finally:
        sender.close()
        receiver.close()
        storage.close()


@pytest.mark.parametrize("transport", ["nixl", "mooncake"])
def test_a_library_asked_for_carries_kv_and_the_choice_is_logged_on_both_sides(
    tmp_path: Path, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    if missing(transport):
        pytest.skip(missing(transport))
    caplog.set_level(logging.INFO)
    storage = allocate_kv(GEOMETRY, "cpu", shared=True)
    settings = config(tmp_path, kv_transport=transport)
    with (
        closing(storage),
        closing(make_receiver(settings, storage, GEOMETRY, secret=SECRET)) as receiver,
        closing(make_sender(config(tmp_path, role="prefill"), GEOMETRY, secret=SECRET)) as sender,
    ):
        assert receiver.endpoint.startswith(f"{transport}://127.0.0.1:")
        arrived, sent = Ending(), Ending()
        receiver.expect(1, [0, 1], tokens=8, on_complete=arrived, on_failed=arrived)
        target = KvAddress(endpoint=receiver.endpoint, blocks=[0, 1], owner="decode-0")
        send_all(sender.open(1, target, on_delivered=sent, on_failed=sent), make_kv(8))
        assert arrived.wait() == 7
    assert f"decode-0: KV arrives over {transport}: kv_transfer.transport asks for it" in caplog.text
    assert f"prefill-0: KV to decode-0 over {transport}: decode-0 offers it" in caplog.text


def test_a_library_that_is_not_installed_is_an_error_and_not_tcp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(select._FINDERS, "nixl", lambda: None)
    storage = allocate_kv(GEOMETRY, "cpu", shared=True)
    with pytest.raises(EnvironmentMissing, match=r'"nixl" is not installed here; pip install "fourlane\[nixl\]"'):
        make_receiver(config(tmp_path, kv_transport="nixl"), storage, GEOMETRY, secret=SECRET)
    sender = make_sender(config(tmp_path, role="prefill"), GEOMETRY, secret=SECRET)
    target = KvAddress(endpoint="nixl://127.0.0.1:9", blocks=[0], owner="decode-0")
    with pytest.raises(EnvironmentMissing, match="not installed here"):
        sender.open(1, target, on_delivered=Ending(), on_failed=Ending())
    storage.close()


HERE = {"all_here": True, "shareable": True}
AWAY = {"all_here": False, "shareable": True}


@pytest.mark.parametrize(
    ("devices", "installed", "where", "expected", "said"),
    [
        ([], ["nixl"], HERE, "shared_memory", "all ranks are on this host"),
        ([], ["nixl"], AWAY, "tcp", "ranks are on several hosts, and this one has no RDMA device"),
        ([], [], {"all_here": True, "shareable": False}, "tcp", "the cache is on a device"),
        (["mlx5_0"], [], AWAY, "tcp", "neither NIXL nor Mooncake"),
        (["mlx5_0"], ["mooncake"], AWAY, "mooncake", "this host has mlx5_0 and mooncake"),
        (["mlx5_0"], ["mooncake", "nixl"], AWAY, "nixl", "this host has mlx5_0 and nixl"),
    ],
)
def test_auto_offers_what_this_host_has(
    monkeypatch: pytest.MonkeyPatch,
    devices: list[str],
    installed: list[str],
    where: dict[str, bool],
    expected: str,
    said: str,
) -> None:
    _pretend(monkeypatch, devices, installed)
    choice = select.choose_offer("auto", **where)
    assert (choice.transport, choice.also_tcp) == (expected, expected in ("nixl", "mooncake"))
    assert said in choice.reason


@pytest.mark.parametrize(
    ("devices", "installed", "expected", "said"),
    [
        (["mlx5_0"], ["nixl"], "nixl", "this host has it too"),
        ([], ["nixl"], "tcp", "this host lacks an RDMA device"),
        (["mlx5_0"], [], "tcp", "this host lacks its package"),
        ([], [], "tcp", "lacks its package and an RDMA device"),
    ],
)
def test_a_sender_takes_the_library_where_it_has_it_too_else_tcp(
    monkeypatch: pytest.MonkeyPatch, devices: list[str], installed: list[str], expected: str, said: str
) -> None:
    _pretend(monkeypatch, devices, installed)
    choice = select.choose_way("nixl+tcp://10.0.0.1:7000", "decode-0")
    assert choice.transport == expected
    assert said in choice.reason
    assert select.choose_way("nixl://10.0.0.1:7000", "decode-0").transport == "nixl", "there is no choice"


def _pretend(monkeypatch: pytest.MonkeyPatch, devices: list[str], installed: list[str]) -> None:
    monkeypatch.setattr(select, "rdma_devices", lambda: {device: [] for device in devices})
    for name in ("nixl", "mooncake"):
        monkeypatch.setitem(select._FINDERS, name, lambda name=name: name if name in installed else None)


@pytest.mark.parametrize("endpoint", ["rdma://there", "rdma+tcp://a:1", "tcp+nixl://a:1", "there"])
def test_endpoints_of_other_versions_are_refused(endpoint: str) -> None:
    with pytest.raises(TransferError, match="unlike versions of fourlane"):
        select.choose_way(endpoint, "decode-0")


def test_shared_memory_that_cannot_be_had_is_an_error_and_not_tcp(tmp_path: Path) -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=False)
    with pytest.raises(TransferError, match="shared_memory needs a KV cache in shared memory"):
        make_receiver(config(tmp_path, kv_transport="shared_memory"), storage, GEOMETRY, secret=SECRET)


def test_an_endpoint_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    sender = make_sender(config(tmp_path, role="prefill"), GEOMETRY, secret=SECRET)
    target = KvAddress(endpoint="rdma://there", blocks=[0], owner="decode-0")
    with pytest.raises(TransferError, match="decode-0: endpoint 'rdma://there': expected tcp://"):
        sender.open(1, target, on_delivered=Ending(), on_failed=Ending())
    sender.close()


def test_a_run_folder_too_deep_for_a_socket_is_named(tmp_path: Path) -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=True)
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(SpecError, match="too long for a socket"):
        make_receiver(config(deep, kv_transport="shared_memory"), storage, GEOMETRY, secret=SECRET)
    storage.close()


def test_the_socket_of_a_receiver_is_its_owners_alone(tmp_path: Path) -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=True)
    receiver = make_receiver(config(tmp_path), storage, GEOMETRY, secret=SECRET)
    assert os.stat(receiver.endpoint.removeprefix("shm://")).st_mode & 0o777 == 0o600  # noqa: PTH116
    receiver.close()
    storage.close()


def free_ports(count: int) -> tuple[int, int]:
    """Return a range of ports that were free a moment ago."""
    while True:
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            first = probe.getsockname()[1]
        if first + count < 65536:
            return first, first + count - 1


def test_receivers_take_the_ports_of_their_range_in_turn_until_none_is_left() -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=False)
    ports = free_ports(2)
    receivers = []

    def start() -> None:
        receivers.append(
            tcp_receiver(storage, addresses=["127.0.0.1"], ports=ports, name="decode-0", secret=SECRET, timeout_s=5)
        )

    try:
        start()
        start()
        assert [receiver.endpoint for receiver in receivers] == [f"tcp://127.0.0.1:{port}" for port in ports]
        with pytest.raises(TransferError, match=f"cannot listen at 127.0.0.1, ports {ports[0]}-{ports[1]}: .*in use"):
            start()
    finally:
        for receiver in receivers:
            receiver.close()


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "eth0"])
def test_an_address_that_names_no_interface_is_refused(address: str) -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=False)
    with pytest.raises(SpecError, match=r"kv_transfer\.address"):
        tcp_receiver(storage, addresses=[address], ports=None, name="decode-0", secret=SECRET, timeout_s=5)


def test_kv_travels_over_ipv6() -> None:
    storage = allocate_kv(GEOMETRY, "cpu", shared=False)
    try:
        receiver = tcp_receiver(storage, addresses=["::1"], ports=None, name="decode-0", secret=SECRET, timeout_s=5)
    except TransferError:
        pytest.skip("this machine has no IPv6 loopback")
    assert receiver.endpoint.startswith("tcp://[::1]:")
    receiver.close()
