"""Every published time and rate of dispatch and combine once more, read from the tables that the twin reads.

python -m pytest tests/validation -m slow
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from fourlane.twin.exchange import ExchangeSetting, ExchangeTable, LanesCase, exchange_times
from fourlane.twin.exchange.runs import ExchangeRun
from fourlane.twin.fabric.exchange_validation import RANKS_PER_NODE, Exchange, draws, infiniband
from fourlane.twin.fabric.expert_kernels import OPERATIONS, ExchangeRow, kernels_named, published_exchanges
from fourlane.twin.fabric.expert_routing import count_messages

if TYPE_CHECKING:
    from fourlane.twin.times import Operation

BY_NAME = {row.name: row for row in published_exchanges()}
QUICK = ("low latency with NVLink, EP8", "low latency, EP32", "H100, 64 tokens, 4 nodes", "H100, 16 tokens, 4 nodes")
ROUNDED = 0.001
"""Published times are whole microseconds: a row 5.0 % off is within 5 %."""


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOURLANE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def of_row(row: ExchangeRow) -> ExchangeSetting:
    return ExchangeSetting(
        cluster=infiniband(max(1, row.ranks // RANKS_PER_NODE)),
        ranks=row.ranks,
        phase="prefill" if row.mode == "normal" else "decode",
        nvlink=row.nvlink,
        hidden=row.hidden,
        experts=row.experts,
        top_k=row.top_k,
        groups=row.groups,
        top_groups=row.top_groups,
        slots=row.experts,
        lanes=LanesCase(),
        kernels=kernels_named(row.kernels),
        kernels_source=row.kernels,
    )


def drawn_balance(row: ExchangeRow) -> float:
    """Return what the fullest rank gets over the wire, over the mean, as the row's own draws of routing have it."""
    node = np.arange(row.ranks) // (RANKS_PER_NODE if row.nvlink and row.ranks > RANKS_PER_NODE else 1)
    away = node[:, None] != node
    received = [
        (count_messages(Exchange(row, "dispatch", seed).rank_TK, ranks=row.ranks) * away).sum(axis=0)
        for seed in range(1, draws(row) + 1)
    ]
    return float(np.mean([each.max() / each.mean() for each in received]))


def figure(row: ExchangeRow, table: ExchangeTable, operation: Operation) -> float:
    seconds = table.operation(operation, row.tokens, drawn_balance(row)).seconds
    return Exchange(row, operation, 1).logical_bytes / seconds / 1e9 if row.in_rates else seconds * 1e6


def hold(row: ExchangeRow) -> None:
    table = exchange_times(of_row(row), processes=1)
    for operation in OPERATIONS:
        found = figure(row, table, operation)
        assert found == pytest.approx(row.published(operation), rel=row.tolerance + ROUNDED), operation


@pytest.mark.parametrize("name", QUICK)
def test_published_times_hold_through_the_table(name: str) -> None:
    hold(BY_NAME[name])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in QUICK])
def test_every_other_published_row_does_too(name: str) -> None:
    hold(BY_NAME[name])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("ranks", "tolerance"), [(8, 0.02), (32, 0.04), (64, 0.08)])
def test_a_prefill_chunk_is_as_the_line_from_small_runs_has_it(ranks: int, tolerance: float) -> None:
    """Four thousand tokens a rank take seconds to simulate; tables run half of them or less, and go on straight."""
    row = BY_NAME["normal, EP64"]
    setting = of_row(row)
    setting = type(setting)(**{name: getattr(setting, name) for name in setting.__struct_fields__} | {"ranks": ranks})
    table, net = exchange_times(setting, processes=1), setting.topology()
    for operation in OPERATIONS:
        run = ExchangeRun(setting, operation, 4096, seed=3)
        packets = run.read(run.scenario(net).run(), net).seconds
        assert table.network_s(operation, 4096) == pytest.approx(packets, rel=tolerance), operation
