"""Which GPU a rank takes, and whether ranks were told alike what they must do alike."""

from __future__ import annotations

import pytest

from fourlane.engine.group import check_alike, gpu_index
from fourlane.engine.rank_config import RankConfig, RankOverlap
from fourlane.errors import EngineError


@pytest.mark.parametrize(
    ("device", "rank", "devices", "expected"),
    [
        ("cuda", 0, 8, 0),
        ("cuda", 5, 8, 5),
        ("cuda", 9, 8, 1),
        ("cuda:4", 0, 8, 4),
        ("cuda:4", 5, 8, 1),
        ("cuda", 3, 1, 0),
    ],
)
def test_ranks_take_gpus_in_order_from_the_one_named(device: str, rank: int, devices: int, expected: int) -> None:
    assert gpu_index(device, rank, devices) == expected


class _Told:
    """A group in which others tell what they would."""

    def __init__(self, *others: RankConfig) -> None:
        self._others = others

    def tell_all(self, text: str) -> list[str]:
        told = [text]
        for other in self._others:
            check_alike(_Listening(told), other)
        return told


class _Listening:
    def __init__(self, told: list[str]) -> None:
        self._told = told

    def tell_all(self, text: str) -> list[str]:
        self._told.append(text)
        return [text]


def _config(**changed: object) -> RankConfig:
    return RankConfig(
        role="unified", rank=0, ranks=2, model_path="", control_endpoint="", secret_file="", run_dir="", **changed
    )  # type: ignore[arg-type]


def test_ranks_told_alike_are_let_through() -> None:
    check_alike(_Told(_config(), _config()), _config())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"exchange_dispatch": "float8"}, "exchange.dispatch: activations, activations, float8"),
        ({"exchange_hierarchical": "never"}, "exchange.hierarchical: auto, auto, never"),
        ({"overlap": RankOverlap(mode="always")}, "overlap.mode: auto, auto, always"),
    ],
)
def test_a_rank_told_otherwise_is_named_before_a_step_can_hang(changed: dict[str, object], named: str) -> None:
    with pytest.raises(EngineError, match=named) as caught:
        check_alike(_Told(_config(), _config(**changed)), _config())
    assert "from the same deployment" in str(caught.value)
