"""A deployment, worked out rank by rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourlane.engine.rank_config import RankBalance, control_endpoint, rank_configs
from fourlane.errors import SpecError
from fourlane.spec.deployment import Balance, Deployment, Gateway, KvTransfer, Pool
from fourlane.units import Rate

RUN = Path("/run/fourlane-test")


def test_every_rank_knows_its_pool_its_group_and_where_the_group_meets() -> None:
    configs = rank_configs(Deployment(prefill=Pool(), decode=Pool(ranks=4, expert_parallel=2)), RUN)
    assert [config.name for config in configs] == ["prefill-0", "decode-0", "decode-1", "decode-2", "decode-3"]
    assert [(config.group, config.group_rank, config.group_size) for config in configs] == [
        (0, 0, 1),
        (0, 0, 2),
        (0, 1, 2),
        (1, 0, 2),
        (1, 1, 2),
    ]
    stores = [config.store for config in configs]
    assert stores[0] == "", "a group of one meets nowhere"
    assert stores[1] == stores[2] != stores[3] == stores[4]


def test_external_ranks_of_a_group_wait_to_be_told_where_to_meet() -> None:
    configs = rank_configs(Deployment(unified=Pool(ranks=2, launch="external")), RUN)
    assert [config.store for config in configs] == ["", ""]


def test_ports_and_times_are_plain_numbers() -> None:
    (config,) = rank_configs(Deployment(unified=Pool(), kv_transfer=KvTransfer(ports="7000-7031")), RUN)
    assert config.kv_ports == (7000, 7031)
    assert config.kv_timeout_s == 30.0


def test_ranks_are_told_how_to_balance_in_plain_numbers() -> None:
    balance = Balance(redundant_experts=8, moves=4, bulk_rate=Rate.parse("1Gbps"))
    (config,) = rank_configs(Deployment(unified=Pool(), balance=balance), RUN)
    assert config.balance == RankBalance(redundant_experts=8, moves=4, bulk_rate=10**9, migration_timeout_s=30.0)
    assert type(config.balance.bulk_rate) is int
    (plain,) = rank_configs(Deployment(unified=Pool()), RUN)
    assert plain.balance is None


def test_the_control_lane_is_a_socket_of_the_run_unless_an_address_is_given() -> None:
    assert control_endpoint(Deployment(unified=Pool()), RUN) == f"ipc://{RUN}/control"
    elsewhere = Deployment(unified=Pool(), gateway=Gateway(control="tcp://10.0.0.1:7100"))
    assert control_endpoint(elsewhere, RUN) == "tcp://10.0.0.1:7100"


def test_all_faults_are_told_at_once() -> None:
    wrong = Deployment(unified=Pool(ranks=3, expert_parallel=2), kv_transfer=KvTransfer(ports="9-1"))
    with pytest.raises(SpecError) as caught:
        rank_configs(wrong, RUN)
    assert len(caught.value.faults) == 2
    assert "unified.expert_parallel: expected a divisor" in caught.value.faults[0]
    assert "kv_transfer.ports" in caught.value.faults[1]
