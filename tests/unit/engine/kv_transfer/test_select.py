"""Which transport is taken, and what is refused at the start."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from kv_lanes import GEOMETRY, SECRET, Ending, make_kv, send_all

from fourlane.engine.kv_transfer import make_receiver, make_sender
from fourlane.engine.kv_transfer.storage import allocate_kv
from fourlane.engine.kv_transfer.tcp import tcp_receiver
from fourlane.engine.messages import KvAddress
from fourlane.engine.rank_config import RankConfig
from fourlane.errors import SpecError, TransferError

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
