"""The model against Hugging Face transformers, in float32: prefill, chunks, pages, decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_random_checkpoint import Shape, write_checkpoint
from one_process import OneProcess
from transformers import (
    AutoModelForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from fourlane.engine.model.config import resolve_model_path

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

TOLERANCE = 1e-4
SMALL: dict[str, Any] = {
    "vocab": 301,
    "hidden": 48,
    "layers": 3,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 12,
    "experts": 8,
    "top_k": 2,
    "expert_dim": 24,
    "dense_dim": 40,
    "dtype": "float32",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "odd heads, 10 experts top-3, a dense layer, biases, no renormalising": {
        "heads": 6,
        "kv_heads": 3,
        "head_dim": 16,
        "experts": 10,
        "top_k": 3,
        "mlp_only_layers": (1,),
        "attention_bias": True,
        "norm_topk_prob": False,
    },
    "tied embeddings, one key head, every second layer dense": {
        "layers": 4,
        "heads": 8,
        "kv_heads": 1,
        "head_dim": 8,
        "tie_embeddings": True,
        "decoder_sparse_step": 2,
        "rope_theta": 1e6,
    },
    "bfloat16 in three shards, top-1": {"dtype": "bfloat16", "shards": 3, "top_k": 1, "heads": 4, "kv_heads": 2},
    "Qwen2: a shared expert, biases of q, k and v, no norms of heads, a dense layer": {
        "shared_expert_dim": 56,
        "attention_bias": True,
        "norm_topk_prob": False,
        "mlp_only_layers": (1,),
    },
    "Qwen2 in bfloat16: no biases, two key heads of four": {
        "shared_expert_dim": 24,
        "dtype": "bfloat16",
        "kv_heads": 2,
    },
    "bundled": {},
}


class Pair:
    """A checkpoint loaded by transformers and by fourlane."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.ours = {kernels: OneProcess.load(folder, kernels=kernels) for kernels in ("native", "torch")}

    def tokens(self, count: int, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.theirs.config.vocab_size, (count,), generator=generator).tolist()

    def reference(self, token_ids: list[int]) -> Tensor:
        with torch.no_grad():
            return self.theirs(torch.tensor([token_ids])).logits[0]


@pytest.fixture(scope="module", params=list(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "bundled":
        return Pair(resolve_model_path("bundled"))
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, Shape(**{**SMALL, **VARIANTS[request.param]}))
    return Pair(folder)


@pytest.fixture(params=["native", "torch"])
def ours(request: pytest.FixtureRequest, pair: Pair) -> OneProcess:
    return pair.ours[request.param]


def test_prefill_gives_the_logits_of_transformers(pair: Pair, ours: OneProcess) -> None:
    token_ids = pair.tokens(61, seed=1)
    reference = pair.reference(token_ids)
    assert reference.std() > 0.5, "logits of a degenerate model prove nothing"
    torch.testing.assert_close(ours.logits(token_ids, chunks=[61]), reference, atol=TOLERANCE, rtol=0)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cut_into_chunks_gives_the_same_logits(pair: Pair, ours: OneProcess, data: st.DataObject) -> None:
    token_ids = pair.tokens(data.draw(st.integers(1, 40), label="tokens"), seed=2)
    chunks = data.draw(st.lists(st.integers(1, 17), min_size=1, max_size=4), label="chunks")
    logits = ours.logits(token_ids, chunks=chunks)
    torch.testing.assert_close(logits, pair.reference(token_ids), atol=TOLERANCE, rtol=0)


def test_decoding_token_by_token_equals_the_full_forward_pass(pair: Pair, ours: OneProcess) -> None:
    token_ids = pair.tokens(30, seed=3)
    logits = ours.logits(token_ids, chunks=[1])
    torch.testing.assert_close(logits, pair.reference(token_ids), atol=TOLERANCE, rtol=0)


def test_texts_of_different_lengths_decoded_and_prefilled_together_do_not_disturb_each_other(
    pair: Pair, ours: OneProcess
) -> None:
    lengths = (23, 1, 9, 16, 4)
    all_tokens = [pair.tokens(length + 3, seed=10 + n) for n, length in enumerate(lengths)]
    texts = [ours.text(tokens) for tokens in all_tokens]
    ours.step([(text, length) for text, length in zip(texts, lengths, strict=True) if length > 1])
    parts = [(texts[0], 1), (texts[1], 4), (texts[2], 1), (texts[3], 3), (texts[4], 2)]
    logits = ours.step(parts)
    expected = torch.cat(
        [pair.reference(text.token_ids)[text.computed - count : text.computed] for text, count in parts]
    )
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    last = ours.step([(texts[0], 1), (texts[2], 1)], every_row=False)
    expected = torch.stack([pair.reference(texts[n].token_ids[: texts[n].computed])[-1] for n in (0, 2)])
    torch.testing.assert_close(last, expected, atol=TOLERANCE, rtol=0)


def test_a_step_without_tokens_runs_and_gives_no_logits(pair: Pair, ours: OneProcess) -> None:
    called: list[int] = []

    def on_kv(layer: int, _k_THd: Tensor, _v_THd: Tensor) -> None:
        called.append(layer)

    logits = ours.step([], on_kv=on_kv)
    assert logits.shape == (0, pair.theirs.config.vocab_size)
    assert not called


def test_each_layers_keys_and_values_are_announced_when_they_are_in_their_pages(pair: Pair, ours: OneProcess) -> None:
    token_ids = pair.tokens(9, seed=4)
    text = ours.text(token_ids)
    seen: list[int] = []

    def on_kv(layer: int, k_THd: Tensor, v_THd: Tensor) -> None:
        seen.append(layer)
        for which, announced in enumerate((k_THd, v_THd)):
            pages = ours.kv_LQBShd[layer, which, text.blocks].flatten(0, 1)[: len(token_ids)]
            assert announced.is_contiguous()
            assert torch.equal(pages, announced)

    ours.step([(text, len(token_ids))], on_kv=on_kv)
    assert seen == list(range(pair.theirs.config.num_hidden_layers))


def test_a_checkpoint_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"head_dim": 8}  # an option that its signature does not name
    config = Qwen3MoeConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        intermediate_size=24,
        mlp_only_layers=[0],
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 7777.0},
        sliding_window=None,
        **options,
    )
    theirs = Qwen3MoeForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    token_ids = torch.randint(0, 97, (20,)).tolist()
    with torch.no_grad():
        reference = theirs(torch.tensor([token_ids])).logits[0]
    logits = OneProcess.load(tmp_path).logits(token_ids, chunks=[7])
    torch.testing.assert_close(logits, reference, atol=TOLERANCE, rtol=0)


def test_a_checkpoint_with_shared_experts_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=40,
        initializer_range=0.3,
    )
    theirs = Qwen2MoeForCausalLM(config).eval()
    for name, tensor in theirs.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(tensor, std=0.3)
    theirs.save_pretrained(tmp_path)
    token_ids = torch.randint(0, 97, (20,)).tolist()
    with torch.no_grad():
        reference = theirs(torch.tensor([token_ids])).logits[0]
    logits = OneProcess.load(tmp_path).logits(token_ids, chunks=[7])
    torch.testing.assert_close(logits, reference, atol=TOLERANCE, rtol=0)


def test_a_row_has_the_same_bits_alone_in_any_batch_and_in_any_chunking(pair: Pair) -> None:
    ours = pair.ours["native"]
    tokens = [pair.tokens(length, seed=20 + n) for n, length in enumerate((6, 19, 33, 7, 12))]
    alone = [ours.logits(token_ids, chunks=[len(token_ids)]) for token_ids in tokens]
    for chunk in (1, 3, 5):
        texts = [ours.text(token_ids) for token_ids in tokens]
        parts: list[list[Tensor]] = [[] for _ in texts]
        while going := [text for text in texts if text.computed < len(text.token_ids)]:
            counts = [min(chunk, len(text.token_ids) - text.computed) for text in going]
            rows = ours.step(list(zip(going, counts, strict=True))).split(counts)
            for text, row in zip(going, rows, strict=True):
                parts[texts.index(text)].append(row)
        for expected, found in zip(alone, parts, strict=True):
            assert torch.equal(torch.cat(found), expected)
        ours.drop(texts)
