"""What a rank's memory holds, and by how much a model does not fit."""

import pytest

from fourlane.errors import SpecError
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.twin import Assumptions, TwinPool
from fourlane.twin.memory import memory_use, weight_bytes
from fourlane.units import Size

DEEPSEEK = load_architecture("deepseek-v3")


def test_weights_of_all_experts_are_those_of_the_model() -> None:
    whole = weight_bytes(DEEPSEEK, "bf16", held_experts=256)
    assert whole == 2 * DEEPSEEK.parameters
    assert weight_bytes(DEEPSEEK, "fp8", held_experts=256) < 0.51 * whole


def test_what_weights_and_reserve_leave_is_for_kv_in_whole_blocks() -> None:
    use = memory_use(DEEPSEEK, "h800", TwinPool(ranks=128), Assumptions(), block_size=64)
    assert use.weights + use.reserve + use.kv + use.free == 80_000_000_000
    assert use.free == 0
    assert use.kv_blocks == use.kv // (64 * 70_272)


def test_given_kv_memory_is_kept_to_and_the_rest_is_free() -> None:
    pool = TwinPool(ranks=128, kv_memory=Size.parse("10GB"))
    use = memory_use(DEEPSEEK, "h800", pool, Assumptions(kv="fp8"), block_size=64)
    assert use.kv == 10_000_000_000
    assert use.kv_blocks == 10_000_000_000 // (64 * 35_136)
    assert use.free > 0


def test_redundant_experts_and_drafting_take_memory() -> None:
    plain = memory_use(DEEPSEEK, "h800", TwinPool(ranks=32), Assumptions(), block_size=64)
    more = memory_use(DEEPSEEK, "h800", TwinPool(ranks=32, redundant_experts=32), Assumptions(), block_size=64)
    drafting = memory_use(DEEPSEEK, "h800", TwinPool(ranks=32), Assumptions(mtp_tokens=1), block_size=64)
    assert more.weights - plain.weights == 58 * DEEPSEEK.expert_parameters
    assert drafting.weights > plain.weights
    assert drafting.kv_blocks < plain.kv_blocks


def test_a_model_that_does_not_fit_says_by_how_many_gb() -> None:
    with pytest.raises(SpecError, match=r"decode: deepseek-v3 does not fit: .* 32 experts a layer.* GB too little"):
        memory_use(DEEPSEEK, "h800", TwinPool(ranks=8), Assumptions(), block_size=64, place="decode")


def test_kv_memory_that_is_not_there_is_refused() -> None:
    pool = TwinPool(ranks=128, kv_memory=Size.parse("70GB"))
    with pytest.raises(SpecError, match=r"does not fit: a rank needs \d+\.\d GB"):
        memory_use(DEEPSEEK, "h800", pool, Assumptions(), block_size=64)
