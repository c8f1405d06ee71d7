"""Exchange times read from a table of packet runs, against packet runs themselves and published measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import Lanes
from fourlane.twin.exchange import (
    ExchangeSetting,
    ExchangeTable,
    IdealExchange,
    exchange_setting,
    exchange_times,
    lanes_case,
)
from fourlane.twin.exchange.runs import ExchangeRun
from fourlane.twin.fabric.expert_kernels import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fourlane.twin.times import Operation, Phase


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FOURLANE_CACHE", str(folder))
        yield folder


def setting_of(ranks: int, phase: Phase = "decode", cluster: str = "h800-ft", **lanes: Any) -> ExchangeSetting:
    read = load_cluster(cluster)
    case = lanes_case(Lanes(**lanes), read)
    return exchange_setting(load_architecture("deepseek-v3"), read, ranks=ranks, phase=phase, lanes=case)


def simulated_s(table: ExchangeTable, operation: Operation, tokens: int, max_over_mean: float) -> float:
    run = ExchangeRun(table.setting, operation, tokens, max_over_mean, seed=7)
    net = table.setting.topology()
    return run.read(run.scenario(net).run(), net).seconds


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("ranks", "tokens", "balance"), [(8, 40, 1.0), (16, 48, 1.3), (64, 20, 1.3), (64, 128, 1.0)])
def test_between_and_beyond_its_runs_a_table_is_within_four_percent_of_packets(
    operation: Operation, ranks: int, tokens: int, balance: float
) -> None:
    table = exchange_times(setting_of(ranks), processes=1)
    told = table.network_s(operation, tokens, balance)
    assert told == pytest.approx(simulated_s(table, operation, tokens, balance), rel=0.04)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_more_tokens_and_less_balance_never_take_less(phase: Phase) -> None:
    table = exchange_times(setting_of(16, phase), processes=1)
    for operation in OPERATIONS:
        by_tokens = [table.operation(operation, tokens, 1.2).seconds for tokens in np.linspace(0, 5000, 300)]
        by_balance = [table.operation(operation, 100, balance).seconds for balance in np.linspace(1, 4, 60)]
        assert np.all(np.diff(by_tokens) >= 0)
        assert np.all(np.diff(by_balance) >= 0)
        assert by_tokens[0] > 0


def test_one_rank_exchanges_nothing() -> None:
    assert exchange_times(setting_of(1)).operation("dispatch", 100, 1.0).seconds == 0.0


def test_only_bytes_take_time_on_an_ideal_network() -> None:
    ideal = IdealExchange(dispatch_bytes=7000, combine_bytes=14000, copies=9, rate=50e9)
    taken = sum(ideal.operation(operation, 32, 1.0).seconds for operation in OPERATIONS)
    assert taken * 2 * 61 == pytest.approx(14.76e-3, rel=1e-3)
