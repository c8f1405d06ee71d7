"""What is really on the wire: packets of a running service, captured on loopback, carry their lane's DSCP."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections import defaultdict
from contextlib import closing
from typing import TYPE_CHECKING, Literal, Self

import msgspec
import pytest
from make_random_checkpoint import Shape, write_checkpoint
from serving import deployment, generate_all

from fourlane.engine.messages import Sampling
from fourlane.gateway.lanes import LIVE_LANES
from fourlane.gateway.service import running_service
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import LanePlan
from fourlane.spec.load import load_cluster, render
from fourlane.spec.traffic import TrafficClass, dscp_to_tos

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fourlane.spec.deployment import Deployment

pytestmark = pytest.mark.distributed

Ends = tuple[tuple[str, int], tuple[str, int]]
CHANGED = {TrafficClass.EXPERT: 44, TrafficClass.KV: 10, TrafficClass.CONTROL: 50}
ETH_P_ALL = 3
IPV4, TCP = 0x0800, 6
LINE = re.compile(r"lane (\w+): ([\d.]+):(\d+) -> ([\d.]+):(\d+) on (\S+), DSCP (\d+), priority (\d+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    shape = Shape(
        vocab=512, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, expert_dim=32,
        max_positions=256, seed=5,
    )  # fmt: skip
    write_checkpoint(folder, shape)
    return folder


class Capture:
    """TCP packets with data on loopback, by their ends: the ToS bytes seen. For IPv4."""

    def __init__(self) -> None:
        self.tos: dict[Ends, list[int]] = defaultdict(list)
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        except PermissionError:
            pytest.skip("capturing packets needs CAP_NET_RAW")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                self._take(self._socket.recv(128))
            except TimeoutError:
                if self._over.is_set():
                    return

    def _take(self, frame: bytes) -> None:
        kind, packet = struct.unpack_from("!H", frame, 12)[0], frame[14:]
        if kind != IPV4 or packet[9] != TCP:
            return
        head = (packet[0] & 15) * 4
        length = struct.unpack_from("!H", packet, 2)[0]
        source, target = struct.unpack_from("!HH", packet, head)
        if length > head + (packet[head + 12] >> 4) * 4:
            ends = (socket.inet_ntoa(packet[12:16]), source), (socket.inet_ntoa(packet[16:20]), target)
            self.tos[ends].append(packet[1])


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]


def plan_file(folder: Path) -> str:
    """Write the default plan with other DSCPs for the lanes of a service."""
    plan = default_plan(load_cluster("lab"))
    taken = set(CHANGED.values())
    free = [str(dscp) for dscp in range(64) if dscp not in taken | {lane.dscp for lane in plan.classes.values()}]
    classes = {
        kind: msgspec.structs.replace(
            lane, dscp=CHANGED.get(kind, lane.dscp), accept=tuple(free) if kind is TrafficClass.DEFAULT else ()
        )
        for kind, lane in plan.classes.items()
    }
    path = folder / "plan.toml"
    path.write_text(render(LanePlan(name="changed", classes=classes)), encoding="utf-8")
    return str(path)


def connections(run_dir: Path) -> Iterator[tuple[TrafficClass, Ends]]:
    """Yield every connection that the logs of ranks tell of, from both of its ends."""
    for log in run_dir.rglob("*.log"):
        for kind, a, port_a, b, port_b, _, _, _ in LINE.findall(log.read_text(encoding="utf-8")):
            ends = (a, int(port_a)), (b, int(port_b))
            yield from ((TrafficClass(kind), each) for each in (ends, ends[::-1]))


async def serve_and_capture(wanted: Deployment) -> dict[TrafficClass, set[int]]:
    """Return the ToS bytes of every lane's data packets while some requests are answered."""
    with Capture() as capture:
        async with running_service(wanted) as service:
            capture.tos.clear()  # gloo's sockets are marked once they are there, which its greetings precede
            asked = [[5 + (7 * i + j) % 500 for j in range(20)] for i in range(6)]
            answers = await generate_all(
                service.router, asked, Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
            )
            assert [len(tokens) for tokens in answers] == [8] * 6
            lane_of = {ends: kind for kind, ends in connections(service.run_dir.path)}
            await asyncio.sleep(0.3)  # the capturing thread lags behind
            seen = {ends: list(tos) for ends, tos in capture.tos.copy().items()}
    found: dict[TrafficClass, set[int]] = {kind: set() for kind in LIVE_LANES}
    packets: dict[TrafficClass, int] = dict.fromkeys(LIVE_LANES, 0)
    for ends, tos in seen.items():
        if ends in lane_of:
            found[lane_of[ends]].update(tos)
            packets[lane_of[ends]] += len(tos)
    assert all(count >= 10 for count in packets.values()), packets
    return found


@pytest.mark.parametrize("changed", [False, True], ids=["default marks", "a plan with other DSCPs"])
@pytest.mark.parametrize("exchange", ["tcp", "torch_all_to_all"])
def test_every_data_packet_of_a_lane_carries_its_dscp_and_no_other(
    checkpoint: Path, tmp_path: Path, exchange: Literal["tcp", "torch_all_to_all"], *, changed: bool
) -> None:
    wanted = deployment(checkpoint, prefill=2, decode=2, exchange=exchange, transport="tcp")
    wanted = msgspec.structs.replace(
        wanted,
        lanes=plan_file(tmp_path) if changed else None,
        gateway=msgspec.structs.replace(wanted.gateway, control=f"tcp://127.0.0.1:{free_port()}"),
    )
    found = asyncio.run(serve_and_capture(wanted))
    dscps = {kind: CHANGED[kind] if changed else kind.dscp for kind in LIVE_LANES}
    # Equal to the ToS byte of the DSCP alone: so the ECN bits are zero as well.
    assert found == {kind: {dscp_to_tos(dscp)} for kind, dscp in dscps.items()}
