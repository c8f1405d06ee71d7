"""A group of ranks on paper: what steps of one and of two streams take, played part by part."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fourlane.policy.overlap import Decision, Outlook, OverlapRule


@dataclass
class Group:
    """Ranks whose times are known. Units: seconds a step; `token_s` and `link_token_s` a token.

    `computing_s` is spent whatever the tokens, `wire_cpu_s` and `wire_token_s` are communication that a processor does
    and that so hides behind nothing, `link_s` and `link_token_s` communication during which all of them
    wait. `noise` is the spread of a part's time, `hiccup` the chance that a part takes five times as long.
    """

    ranks: int = 2
    layers: int = 8
    computing_s: float = 2e-3
    token_s: float = 50e-6
    wire_cpu_s: float = 0.0
    wire_token_s: float = 0.0
    link_s: float = 0.0
    link_token_s: float = 0.0
    noise: float = 0.0
    hiccup: float = 0.0
    dual_penalty: float = 1.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def step(self, tokens_G: list[int], mode: str) -> list[Outlook]:
        """Return what each rank would tell of a step it ran."""
        batches = [tokens_G] if mode == "single" else [[-(-t // 2) for t in tokens_G], [t // 2 for t in tokens_G]]
        parts = [self._parts(batch) for batch in batches]
        computing_s = [sum(part[0][rank] for part in parts[0]) for rank in range(self.ranks)]
        wall_s = _played(parts) * (self.dual_penalty if mode == "dual" else 1.0)
        wire_s = sum(wire for _, wire, _ in parts[0])
        return [
            Outlook(
                prefill=0,
                decode=tokens,
                mode=1 if mode == "single" else 2,
                wall_us=int(1e6 * (wall_s + rank * 3e-4)),
                exchange_us=int(1e6 * (wall_s - computing_s[rank])),
                idle_us=int(1e6 * (wall_s - computing_s[rank] - wire_s + rank * 3e-4)) if mode == "single" else 0,
            )
            for rank, tokens in enumerate(tokens_G)
        ]

    def _parts(self, tokens_G: list[int]) -> list[tuple[list[float], float, float]]:
        """Return the parts of a forward pass: computing by rank, then communication by processor and by link."""
        count, mean, most = 2 * self.layers, sum(tokens_G) / len(tokens_G), max(tokens_G)
        seconds = [self.computing_s + self.token_s * (tokens + mean) / 2 for tokens in tokens_G]
        seconds += [self.wire_cpu_s + self.wire_token_s * most, self.link_s + self.link_token_s * most]
        shape = (count, len(seconds))
        factor = np.maximum(0.3, 1 + self.noise * self.rng.standard_normal(shape))
        factor *= np.where(self.rng.random(shape) < self.hiccup, 5.0, 1.0)
        rows = (factor * np.array(seconds) / count).tolist()
        return [(row[:-2], row[-2], row[-1]) for row in rows]


def _played(parts: list[list[tuple[list[float], float, float]]]) -> float:
    """Return when the last stream ends: they take turns part by part at one processor a rank and at one link."""
    processor = link = 0.0
    ready = [0.0] * len(parts)
    for turn in zip(*parts, strict=True):
        for stream, (computing_G, wire, on_link) in enumerate(turn):
            processor = max(processor, ready[stream]) + max(computing_G)
            processor += wire
            link = max(link, processor) + on_link
            ready[stream] = link
    return max(ready)


@dataclass
class Run:
    """What came of a run under the rule: seconds of it, of none but single streams, decisions in order."""

    seconds: float
    single_s: float
    decisions: list[Decision]

    @property
    def speed(self) -> float:
        """Return how many times faster it was than with one stream throughout."""
        return self.single_s / self.seconds


def play(group: Group, loads: list[list[int]], rule: OverlapRule | None = None) -> Run:
    """Run steps of these tokens under the rule, and beside it all of them with one stream."""
    rule = rule or OverlapRule(layers=group.layers, ranks=group.ranks)
    run = Run(0.0, 0.0, [])
    last, decision = [Outlook() for _ in range(group.ranks)], rule.decision
    for step, tokens_G in enumerate(loads):
        after = loads[step + 1] if step + 1 < len(loads) else [0] * group.ranks
        told = [outlook._replace(decode_next=tokens) for outlook, tokens in zip(last, after, strict=True)]
        now = group.step(tokens_G, decision.mode)
        other = now if decision.mode == "single" else group.step(tokens_G, "single")
        run.seconds += min(outlook.wall_us for outlook in now) / 1e6
        run.single_s += min(outlook.wall_us for outlook in other) / 1e6
        run.decisions.append(decision)
        decision = rule.decide(np.array(told, dtype=np.int64))
        last = now
    return run
