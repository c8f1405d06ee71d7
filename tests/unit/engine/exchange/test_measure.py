"""The plan of measuring exchanges, and what becomes of what ranks say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import torch

from fourlane.engine.exchange.measure import ExchangePlan, Said, collect
from fourlane.engine.exchange.payload import FLOAT8
from fourlane.engine.measured_ranks import Seats
from fourlane.errors import EngineError

if TYPE_CHECKING:
    from fourlane.engine.measured_ranks import Source

SEATS = Seats(addresses=("a", "b"), folder="f")
PLAN = ExchangePlan(seats=SEATS, implementations=("tcp",), sizes=(4096,), ways=("pair",), rounds=2)


def rank_saying(*said: object) -> Source:
    left = list(said)
    return lambda _: msgspec.to_builtins(left.pop(0))


def test_implementations_take_turns_and_memcpy_is_among_them_only_where_there_is_no_link() -> None:
    plan = msgspec.structs.replace(PLAN, implementations=("x", "y"), ways=("plain",))
    assert [step.implementation for step in plan.steps()] == ["memcpy", "memcpy alone", "x", "y"] * 2
    linked = msgspec.structs.replace(plan, seats=msgspec.structs.replace(SEATS, linked=True))
    assert [step.implementation for step in linked.steps()] == ["x", "y"] * 2


def test_an_operation_takes_as_long_as_on_the_slowest_rank_and_rounds_are_joined() -> None:
    sources = [
        rank_saying(Said(seconds=[1.0, 5.0]), Said(seconds=[2.0], waited_s=[0.0, 0.5])),
        rank_saying(Said(seconds=[3.0, 4.0]), Said(seconds=[1.0], waited_s=[0.25, 0.0])),
    ]
    shown = []
    (found,) = collect(PLAN, sources, shown.append)
    assert found.seconds == [3.0, 5.0, 2.0]
    assert found.waited_s == [[0.0, 0.5], [0.25, 0.0]]
    assert (found.ranks, found.size, found.travels) == (2, 4096, 8192)
    assert shown == PLAN.steps()


def test_a_rank_that_failed_ends_the_measurement_with_its_words() -> None:
    sources = [rank_saying(Said(seconds=[1.0])), rank_saying({"failure": "rows were lost"})]
    with pytest.raises(EngineError, match="bench: rank 1: rows were lost"):
        collect(PLAN, sources, lambda _: None)


def test_ranks_that_measured_unlike_numbers_of_operations_are_an_error() -> None:
    sources = [rank_saying(Said(seconds=[1.0])), rank_saying(Said(seconds=[1.0, 2.0]))]
    with pytest.raises(ValueError, match="zip"):
        collect(PLAN, sources, lambda _: None)


def test_what_travels_is_less_where_tokens_are_dispatched_as_float8() -> None:
    said = [Said(seconds=[1.0]), Said(seconds=[1.0])]
    plan = msgspec.structs.replace(PLAN, dispatch="float8")
    (found,) = collect(plan, [rank_saying(*said), rank_saying(*said)], lambda _: None)
    assert found.travels == 4096 + 2 * FLOAT8.row_bytes(512, torch.float32)
