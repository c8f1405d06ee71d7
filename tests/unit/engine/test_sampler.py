"""Choosing tokens, against a plain-Python oracle."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourlane.engine import sampler
from fourlane.engine.messages import Sampling
from fourlane.engine.sampler import SamplingRow, philox4x32, sample, uniforms

VOCABULARY = 40
PROMPT = [3, 3, 5, 8]

logit_rows = st.lists(
    st.floats(-8, 8, width=32).map(lambda x: round(x, 2)), min_size=VOCABULARY, max_size=VOCABULARY, unique=True
)


def row(
    index: int = 0, *, output: tuple[int, ...] = (), eos: frozenset[int] = frozenset(), **given_: Any
) -> SamplingRow:
    sampling = Sampling(max_tokens=99, **given_)
    return SamplingRow(sampling, index, [*PROMPT, *output], len(PROMPT), eos)


def choose(logits: list[float], one: SamplingRow) -> int:
    return sample(torch.tensor([logits]), [one])[0].token_id


# the draw


def philox_in_plain_integers(counter: list[int], key: list[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(second >> 32) ^ c[1] ^ k[0], second % 2**32, (first >> 32) ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    words = philox4x32(
        tuple(np.array([word], dtype=np.uint64) for word in counter),  # type: ignore[arg-type]
        tuple(np.array([word], dtype=np.uint64) for word in key),  # type: ignore[arg-type]
    )
    assert [int(word[0]) for word in words] == expected
    assert philox_in_plain_integers(counter, key) == expected


@given(st.lists(st.tuples(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**40)), min_size=1, max_size=5))
def test_a_uniform_depends_on_its_seed_and_position_alone(pairs: list[tuple[int, int]]) -> None:
    together = uniforms([seed for seed, _ in pairs], [position for _, position in pairs])
    for (seed, position), value in zip(pairs, together, strict=True):
        words = philox_in_plain_integers([position % 2**32, position >> 32, 0, 0], [seed % 2**32, (seed >> 32) % 2**32])
        assert value == ((words[0] << 32 | words[1]) >> 12) / 2**52
        assert 0.0 <= value < 1.0


def test_draws_of_consecutive_positions_and_of_neighbouring_seeds_are_uniform() -> None:
    for values in (uniforms([7] * 4000, range(4000)), uniforms(range(4000), [3] * 4000)):
        counts, _ = np.histogram(values, bins=20, range=(0, 1))
        assert ((counts - 200) ** 2 / 200).sum() < 50, "chi-squared with 19 degrees of freedom: p < 0.0002"


def test_texts_are_drawn_with_the_probabilities_of_the_model() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    counts = Counter(one.token_id for one in sample(logits.repeat(8000, 1), [row(seed=seed) for seed in range(8000)]))
    for token, probability in enumerate(torch.softmax(logits, -1).tolist()):
        spread = math.sqrt(8000 * probability * (1 - probability))
        assert abs(counts[token] - 8000 * probability) < 4.5 * spread


# filters


def oracle(logits: list[float], sampling: Sampling, index: int) -> tuple[int, set[int]]:
    """Return the token, and the tokens that filters leave, by Python floats and sorting."""
    scaled = [(value - max(logits)) / sampling.temperature for value in logits]
    weight = {token: math.exp(value) for token, value in enumerate(scaled)}
    ranked = sorted(weight, key=lambda token: (-weight[token], token))
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    if sampling.top_p < 1:
        kept: list[int] = []
        total, mass = sum(weight[token] for token in ranked), 0.0
        for token in ranked:
            if mass >= sampling.top_p * total and kept:
                break
            kept.append(token)
            mass += weight[token]
        ranked = kept
    ranked = [token for token in ranked if weight[token] >= sampling.min_p * weight[ranked[0]]]
    left = sorted(ranked)
    target = uniforms([sampling.seed], [index])[0] * sum(weight[token] for token in left)
    running = 0.0
    for token in left:
        running += weight[token]
        if running > target:
            break
    return token, set(left)


@settings(max_examples=150, deadline=None)
@given(
    logits=logit_rows,
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 500),
    temperature=st.floats(0.2, 3.0),
    top_k=st.one_of(st.just(0), st.integers(1, VOCABULARY + 5)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.99)),
    min_p=st.one_of(st.just(0.0), st.floats(0.01, 0.9)),
)
def test_filters_and_draw_agree_with_the_oracle(
    logits: list[float], seed: int, index: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    one = row(index, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected, left = oracle(logits, one.sampling, index)
    chosen = choose(logits, one)
    if chosen != expected:  # the two differ in the last bits of their weights: only then may the choice
        nudged = {
            oracle(logits, row(seed=seed, temperature=temperature, top_k=top_k, top_p=p, min_p=m).sampling, index)[0]
            for p in (top_p * (1 - 1e-6), min(1.0, top_p * (1 + 1e-6)))
            for m in (min_p * (1 - 1e-6), min_p * (1 + 1e-6))
        }
        assert chosen in nudged | neighbours(logits, one.sampling, left, index)


def neighbours(logits: list[float], sampling: Sampling, left: set[int], index: int) -> set[int]:
    """Return the tokens whose stretch of the running sum comes within 1e-6 of the draw."""
    weight = [math.exp((value - max(logits)) / sampling.temperature) for value in logits]
    total = sum(weight[token] for token in left)
    target = uniforms([sampling.seed], [index])[0]
    found, running = set(), 0.0
    for token in sorted(left):
        before, running = running, running + weight[token] / total
        if before - 1e-6 <= target <= running + 1e-6:
            found.add(token)
    return found


@settings(max_examples=60, deadline=None)
@given(logits=logit_rows, top_p=st.floats(0.05, 0.95), top_k=st.integers(1, VOCABULARY))
def test_over_many_seeds_exactly_the_tokens_that_filters_leave_come_up(
    logits: list[float], top_p: float, top_k: int
) -> None:
    rows = [row(seed=seed, top_p=top_p, top_k=top_k, temperature=2.0) for seed in range(200)]
    _, left = oracle(logits, rows[0].sampling, 0)
    _, slightly_more = oracle(logits, row(top_p=min(1, top_p + 1e-6), top_k=top_k, temperature=2.0).sampling, 0)
    came = {one.token_id for one in sample(torch.tensor([logits] * 200), rows)}
    assert came <= left | slightly_more
    likely = oracle(logits, row(top_p=top_p - 1e-6, top_k=top_k, temperature=2.0).sampling, 0)[1]
    assert max(likely, key=lambda token: logits[token]) in came


def test_equal_logits_at_the_edge_of_top_k_and_top_p_all_stay() -> None:
    logits = [1.0, 1.0, 1.0, -9.0]
    filters: list[dict[str, Any]] = [{"top_k": 2}, {"top_p": 0.5}]
    for given_ in filters:
        came = {one.token_id for one in sample(torch.tensor([logits] * 99), [row(seed=s, **given_) for s in range(99)])}
        assert came == {0, 1, 2}


def test_a_flat_distribution_wider_than_the_first_look_is_cut_where_it_should_be() -> None:
    vocabulary = 4 * sampler._NUCLEUS_FIRST_TRY
    logits = torch.linspace(0, -0.01, vocabulary).repeat(2000, 1)
    came = {one.token_id for one in sample(logits, [row(seed=seed, top_p=0.75) for seed in range(2000)])}
    edge = 3 * vocabulary // 4
    assert edge - 60 < max(came) < edge + 5


@given(logits=logit_rows)
def test_the_tightest_filters_leave_the_likeliest_token(logits: list[float]) -> None:
    best = max(range(VOCABULARY), key=lambda token: logits[token])
    tightest: list[dict[str, Any]] = [
        {"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-6}, {"temperature": 0.0},
    ]  # fmt: skip
    for given_ in tightest:
        assert choose(logits, row(seed=11, **given_)) == best


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert choose([0.0, 2.0, 2.0, 1.0], row(temperature=0.0)) == 1


# penalties, bias, minimum length


@settings(max_examples=100, deadline=None)
@given(
    logits=logit_rows,
    output=st.lists(st.integers(0, VOCABULARY - 1), max_size=8),
    repetition=st.sampled_from([1.0, 0.5, 1.3, 2.0]),
    presence=st.sampled_from([0.0, -2.0, 0.7]),
    frequency=st.sampled_from([0.0, -1.0, 1.5]),
    bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-20, 20, width=32), max_size=3),
)
def test_penalties_and_bias_agree_with_the_oracle(
    logits: list[float],
    output: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
) -> None:
    one = row(
        len(output),
        output=tuple(output),
        temperature=0.0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
    )
    expected = list(logits)
    for token in {*PROMPT, *output}:
        expected[token] = expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
    for token, count in Counter(output).items():
        expected[token] -= frequency * count + presence
    for token, value in bias.items():
        expected[token] += value
    assert expected[choose(logits, one)] == pytest.approx(max(expected), abs=1e-4)


def test_presence_and_frequency_look_at_the_output_alone_and_repetition_at_the_prompt_too() -> None:
    logits = [0.0] * 10
    logits[PROMPT[0]] = 1.0
    logits[9] = 0.9
    assert choose(logits, row(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)) == PROMPT[0]
    assert choose(logits, row(temperature=0.0, repetition_penalty=2.0)) == 9
    assert choose(logits, row(1, output=(PROMPT[0],), temperature=0.0, presence_penalty=2.0)) == 9


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_a_text_does_not_end_before_its_minimum_length(temperature: float) -> None:
    logits = [0.0, 50.0, 40.0, 30.0, 1.0]
    given_: dict[str, Any] = {"temperature": temperature, "min_tokens": 2, "stop_token_ids": [2]}
    eos = frozenset({1})
    assert choose(logits, row(0, eos=eos, **given_)) == 3
    assert choose(logits, row(1, eos=eos, **given_)) == 3
    assert choose(logits, row(2, eos=eos, **given_)) == 1
    assert choose(logits, row(0, eos=eos, ignore_eos=True, **given_)) == 1


def test_a_bias_of_a_hundred_decides() -> None:
    assert choose([5.0, 0.0, 3.0], row(seed=1, logit_bias={1: 100.0})) == 1
    assert choose([5.0, 0.0, 3.0], row(temperature=0.0, logit_bias={0: -100.0})) == 2


# log-probabilities


@given(logits=logit_rows, wanted=st.integers(0, 6))
def test_log_probabilities_are_the_models_own_whatever_the_sampling(logits: list[float], wanted: int) -> None:
    one = row(seed=3, temperature=0.5, top_k=3, logit_bias={7: 100.0}, logprobs=wanted)
    (chosen,) = sample(torch.tensor([logits]), [one])
    expected = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1).tolist()
    ranked = sorted(range(VOCABULARY), key=lambda token: -logits[token])
    assert chosen.token_id == 7
    assert chosen.logprob == pytest.approx(expected[7], abs=1e-5)
    assert chosen.top is not None
    assert [token for token, _ in chosen.top] == ranked[:wanted]
    assert [value for _, value in chosen.top] == pytest.approx([expected[token] for token in ranked[:wanted]], abs=1e-5)


def test_rows_that_did_not_ask_for_log_probabilities_get_none() -> None:
    first, second, third = sample(torch.randn(3, 9), [row(), row(logprobs=2), row(logprobs=0)])
    assert (first.logprob, first.top) == (None, None)
    assert second.top is not None
    assert len(second.top) == 2
    assert third.top == []
    assert third.logprob is not None


# batches

some_sampling = st.builds(
    dict,
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 3, 17]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logprobs=st.sampled_from([None, 2]),
    min_tokens=st.sampled_from([0, 5]),
)


@settings(max_examples=80, deadline=None)
@given(given_=st.lists(st.tuples(some_sampling, st.integers(0, 9)), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_a_row_gets_the_same_whatever_else_is_in_the_batch(given_: list[tuple[dict[str, Any], int]], seed: int) -> None:
    logits_NV = torch.randn(len(given_), 77, generator=torch.Generator().manual_seed(seed)) * 3
    before = logits_NV.clone()
    rows = [row(index, output=(4, 9, 9), eos=frozenset({1}), **options) for options, index in given_]
    together = sample(logits_NV, rows)
    alone = [sample(logits_NV[n : n + 1], [one])[0] for n, one in enumerate(rows)]
    assert together == alone
    assert torch.equal(logits_NV, before), "the logits are left as they are"


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty(0, 9), []) == []


def test_a_row_in_which_everything_is_ruled_out_still_gets_a_token_of_the_vocabulary() -> None:
    one = row(seed=5, min_tokens=3, stop_token_ids=[0, 1, 2])
    assert choose([1.0, 2.0, 3.0], one) in range(3)
