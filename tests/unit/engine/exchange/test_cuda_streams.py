"""Computing and communicating streams are ordered by events, and the allocator is told who uses what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import torch

from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.local import LocalExchange
from fourlane.policy.placement import linear_placement

PLACEMENT = linear_placement(layers=1, experts=4, ranks=1)


@dataclass
class Gpu:
    """What `torch.cuda` is used for, written down: by whom, in which order."""

    log: list[str] = field(default_factory=list)
    current: str = "computing"

    def tell(self, line: str) -> None:
        self.log.append(line)


@dataclass
class PlayedStream:
    gpu: Gpu
    name: str

    def wait_event(self, event: PlayedEvent) -> None:
        assert event.recorded_on, "an event is recorded before anything waits for it"
        self.gpu.tell(f"{self.name} waits for {event.recorded_on}")


@dataclass
class PlayedEvent:
    gpu: Gpu
    recorded_on: str = ""

    def record(self, stream: PlayedStream) -> None:
        self.recorded_on = stream.name
        self.gpu.tell(f"record on {stream.name}")


@dataclass
class Entered:
    gpu: Gpu
    stream: PlayedStream

    def __enter__(self) -> Self:
        self.gpu.current = self.stream.name
        return self

    def __exit__(self, *_: object) -> None:
        self.gpu.current = "computing"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    played = Gpu()

    def stream(_device: torch.device, *, priority: int) -> PlayedStream:
        assert priority < 0, "a small transfer does not queue behind kernels"
        return PlayedStream(played, "communicating")

    def record_stream(tensor: torch.Tensor, stream: PlayedStream) -> None:
        played.tell(f"used on {stream.name}: {tuple(tensor.shape)}")

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: PlayedEvent(played))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: PlayedStream(played, "computing"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Entered(played, stream))
    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
    return played


class NotedExchange(LocalExchange):
    """A local exchange that tells on which stream it worked."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__(PLACEMENT)
        self.gpu = gpu

    def dispatch(self, *tokens: Any, **options: Any) -> Any:
        self.gpu.tell(f"dispatch on {self.gpu.current}")
        return super().dispatch(*tokens, **options)

    def combine(self, *rows: Any) -> Any:
        self.gpu.tell(f"combine on {self.gpu.current}")
        return super().combine(*rows)


def test_a_gpu_communicates_behind_what_was_computed_and_computes_behind_what_arrived(gpu: Gpu) -> None:
    exchange = CommunicationThread(NotedExchange(gpu), device=torch.device("cuda"))
    exchange.begin_step(0, more=False)
    x_TD, topk_TK, weights_TK = torch.ones(3, 2), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    received = exchange.dispatch(x_TD, topk_TK, weights_TK, PLACEMENT, layer=0).wait()
    dispatch, gpu.log = gpu.log, []
    exchange.combine(received.x_RD, received).wait()
    exchange.close()
    assert dispatch == [
        "used on communicating: (3, 2)",
        "used on communicating: (3, 1)",
        "used on communicating: (3, 1)",
        "record on computing",
        "communicating waits for computing",
        "dispatch on communicating",
        "record on communicating",
        "computing waits for communicating",
        "used on computing: (3, 2)",
    ]
    assert gpu.log == [
        "used on communicating: (3, 2)",
        "record on computing",
        "communicating waits for computing",
        "combine on communicating",
        "record on communicating",
        "computing waits for communicating",
        "used on computing: (3, 2)",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_two_streams_give_the_bits_of_one() -> None:
    device = torch.device("cuda")
    direct = LocalExchange(PLACEMENT)
    threaded = CommunicationThread(LocalExchange(PLACEMENT), device=device)
    generator = torch.Generator(device).manual_seed(1)
    for _ in range(50):
        x_TD = torch.randn(4096, 1024, device=device, generator=generator)
        topk_TK = torch.rand(4096, 4, device=device, generator=generator).topk(2).indices
        weights_TK = torch.rand(4096, 2, device=device, generator=generator)
        results = []
        for exchange in (direct, threaded):
            exchange.begin_step(0, more=False)
            received = exchange.dispatch(x_TD @ x_TD.T @ x_TD, topk_TK, weights_TK, PLACEMENT, layer=0).wait()
            results.append(exchange.combine(received.x_RD * 3, received).wait())
        assert torch.equal(*results)
    threaded.close()
