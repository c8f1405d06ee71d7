"""What a unit can serve, roughly, from a few step times: enough to tell which pairs are worth working out.

No queues, no KV path, no crowding: `fourlane.twin.operating_point` has those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.twin.steady.attended_pairs import AttendedPairs
from fourlane.twin.times import GroupLoad

if TYPE_CHECKING:
    from fourlane.spec.twin import Slo
    from fourlane.twin.assembly_parts import Assembly, PhaseModel
    from fourlane.twin.steady.request_mix import RequestMix

__all__ = ["decode_rate", "prefill_rate"]

_HALVINGS = 12


def prefill_rate(model: PhaseModel, mix: RequestMix) -> float:
    """Return the requests a second that a unit computes the prompts of, always full."""
    chunk, prompt = float(model.pool.chunk_tokens), float(mix.new_N.mean())
    load = GroupLoad(
        ranks=model.pool.ranks,
        prefill_tokens=chunk,
        prefill_pairs=AttendedPairs.of(mix, chunk).fullest(chunk, model.pool.ranks),
        decode_tokens=0.0,
        decode_context=0.0,
        logits=chunk / prompt,
        tokens=chunk,
    )
    return model.pool.ranks * chunk / prompt / model.steps.step(load).seconds


def decode_rate(assembly: Assembly, mix: RequestMix, slo: Slo) -> float:
    """Return the requests a second that a unit answers, as full as memory, `max_running` and the SLO's TPOT allow."""
    model, block = assembly.decode, assembly.twin.block_size
    answer = float(mix.further_N.mean())
    if not answer:
        return float("inf")
    held = mix.pages(block)[1]
    most = min(float(model.pool.max_running), model.memory.kv_blocks / held)
    bound = None if slo.tpot is None else slo.tpot.seconds
    low, high = 0.0, most
    if bound is not None and _token_s(assembly, mix, most) > bound:
        for _ in range(_HALVINGS):
            between = (low + high) / 2
            low, high = (between, high) if _token_s(assembly, mix, between) <= bound else (low, between)
        most = low
    if most <= 0:
        return 0.0
    return model.pool.ranks * most / _token_s(assembly, mix, most) / answer


def _token_s(assembly: Assembly, mix: RequestMix, sequences: float) -> float:
    """Return the time a token takes with so many sequences a rank."""
    rows = sequences * (1 + assembly.twin.assumptions.mtp_tokens)
    load = GroupLoad(
        ranks=assembly.decode.pool.ranks,
        prefill_tokens=0.0,
        prefill_pairs=0.0,
        decode_tokens=rows,
        decode_context=sequences * mix.decode_context,
        logits=rows,
        tokens=rows,
    )
    return assembly.decode.steps.step(load).seconds / assembly.tokens_per_step
