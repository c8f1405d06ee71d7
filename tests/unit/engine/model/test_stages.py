"""The list of stages is what the model computes between its yields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from one_process import OneProcess

from fourlane.engine.exchange.contract import TURN
from fourlane.engine.model.attention import Attention
from fourlane.engine.model.moe import NativeMlp, NativeRouter, NativeSharedExpert
from fourlane.policy.stages import Stage, model_stages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fourlane.policy.stages import Part


class Recorder:
    """What a model computed since it last yielded, and how each stretch ended."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.stages: list[tuple[tuple[Part, ...], str]] = []
        self._posted: dict[int, str] = {}

    def calls(self, part: Part, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, noting that a part is computed."""

        def noted(*arguments: Any, **options: Any) -> Any:
            self.parts.append(part)
            begun = len(self.parts)
            result = function(*arguments, **options)
            del self.parts[begun:]  # a shared expert is an MLP, too
            return result

        return noted

    def posts(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, noting that what it returns is of this kind."""

        def noted(*arguments: Any, **options: Any) -> Any:
            pending = function(*arguments, **options)
            self._posted[id(pending)] = kind
            return pending

        return noted

    def ends(self, pending: object) -> None:
        """Note the end of a stretch."""
        then = "end" if pending is None else "turn" if pending is TURN else self._posted[id(pending)]
        self.stages.append((tuple(self.parts), then))
        self.parts = []


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(Attention, "project", recorder.calls("attention 0", Attention.project))
    monkeypatch.setattr(Attention, "attend", recorder.calls("attention 1", Attention.attend))
    monkeypatch.setattr(NativeRouter, "__call__", recorder.calls("router", NativeRouter.__call__))
    monkeypatch.setattr(NativeMlp, "__call__", recorder.calls("mlp", NativeMlp.__call__))
    monkeypatch.setattr(NativeSharedExpert, "add_to", recorder.calls("shared expert", NativeSharedExpert.add_to))
    return recorder


def stages_of_a_pass(ours: OneProcess, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what each stretch of a pass of three tokens computed, and how it ended."""
    model, exchange = ours.model, ours.exchange
    for block in model.moe_blocks:
        monkeypatch.setattr(block, "experts", recorder.calls("experts", block.experts))
    monkeypatch.setattr(model, "_head", recorder.calls("output", model._head))
    monkeypatch.setattr(exchange, "dispatch", recorder.posts("dispatch", exchange.dispatch))
    monkeypatch.setattr(exchange, "combine", recorder.posts("combine", exchange.combine))
    forward = model.forward

    def recorded(*arguments: Any) -> Any:
        stages = forward(*arguments)
        awaited = None
        recorder.parts = ["embedding"]
        while True:
            try:
                pending = stages.send(awaited)
            except StopIteration as finished:
                recorder.ends(None)
                return finished.value
            recorder.ends(pending)
            awaited = yield pending

    monkeypatch.setattr(model, "forward", recorded)
    ours.step([(ours.text([5, 6, 7]), 3)])
    return recorder.stages


@pytest.mark.parametrize("shared_expert_dim", [0, 24])
def test_the_list_is_what_the_model_computes_between_its_yields(
    small_checkpoint: Callable[..., Path], recorder: Recorder, monkeypatch: pytest.MonkeyPatch, shared_expert_dim: int
) -> None:
    folder = small_checkpoint(layers=4, mlp_only_layers=(0, 2), shared_expert_dim=shared_expert_dim)
    ours = OneProcess.load(folder)
    listed = [(stage.parts, stage.then) for stage in ours.model.stages()]
    assert any("shared expert" in parts for parts, _ in listed) == (shared_expert_dim > 0)
    assert stages_of_a_pass(ours, recorder, monkeypatch) == listed
    assert [stage.layer for stage in ours.model.stages()] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4]


def test_a_layer_with_experts_has_the_published_stages_and_a_shared_expert_comes_after_the_router() -> None:
    assert model_stages([True], shared=True) == (
        Stage(0, ("embedding", "attention 0"), "turn"),
        Stage(0, ("attention 1", "router", "shared expert"), "dispatch"),
        Stage(0, ("experts",), "combine"),
        Stage(1, ("output",), "end"),
    )
    assert model_stages([True], shared=False)[1].computes == "attention 1, router"
