"""Positions that the rank with the longest prompts attends to."""

import numpy as np
import pytest

from fourlane.spec.twin import Workload
from fourlane.twin.steady.attended_pairs import AttendedPairs
from fourlane.twin.steady.request_mix import RequestMix, request_mix


def mix_of(lengths: str) -> RequestMix:
    return request_mix(Workload(rate=1.0, input_len=lengths, output_len="8"), block_size=16, cache_blocks=0)


def test_one_rank_attends_to_its_own_prompt_from_the_beginning() -> None:
    attended = AttendedPairs.of(mix_of("100..1000"), 4096.0)
    assert attended.fullest(300.0, 1.0) == pytest.approx(300 * 301 / 2)


def test_ranks_with_like_whole_prompts_are_equal() -> None:
    attended = AttendedPairs.of(mix_of("512"), 4096.0)
    assert attended.fullest(4096.0, 32.0) == pytest.approx(8 * 512 * 513 / 2, rel=0.02)


def test_the_fullest_of_many_ranks_has_what_simple_draws_give() -> None:
    mix, chunk, ranks = mix_of("lognormal:2048/16384"), 8192, 16
    rng = np.random.default_rng(1)
    lengths = rng.choice(mix.input_N, size=12_000).round().astype(int)
    position = np.concatenate([np.arange(1, length + 1) for length in lengths[:12_000]])
    chunks = rng.permutation(position[: len(position) // chunk * chunk].reshape(-1, chunk).sum(axis=1))
    greatest = chunks[: len(chunks) // ranks * ranks].reshape(-1, ranks).max(axis=1).mean()
    found = AttendedPairs.of(mix, float(chunk)).fullest(float(chunk), float(ranks))
    assert found == pytest.approx(greatest, rel=0.1)
    assert found > 2 * chunk * mix.pairs


def test_a_rank_with_less_than_a_chunk_has_no_part_of_a_longer_prompt() -> None:
    attended = AttendedPairs.of(mix_of("lognormal:2048/16384"), 8192.0)
    assert attended.fullest(4000.0, 32.0) <= 4000 * 4001 / 2
