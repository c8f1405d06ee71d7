"""Balance and step times of the bundled model under a narrow load, with and without [balance], in one run.

The same requests go to one rank, to a group that leaves experts in order (the baseline), to a group
that balances them, and to one that moves some all the time; tokens must be the same. Balance is max/mean
rows a rank, sum of maxima over sum of means of all steps and layers, over the rounds of requests after
the first. Step times are those of decode steps in which every request takes part.

    python benchmarks/bench_live_balance.py [--ranks 2 4] [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from result_page import write_page
from timed_rank import FOLDER_VARIABLE

from fourlane.engine.messages import Sampling
from fourlane.engine.model.config import resolve_model_path
from fourlane.gateway.generation import ChoiceSpec, GenerationRequest
from fourlane.gateway.service import running_service
from fourlane.gateway.tokenizer import ModelTokenizer
from fourlane.report.tables import Table, byte_text, plain_lines
from fourlane.spec.deployment import Balance, Deployment, Exchange, Gateway, Pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.engine.messages import BalanceStats
    from fourlane.gateway.service import Service

REQUESTS, OUTPUT, ROUNDS = 48, 120, 3
BEGINNINGS = (
    "And Adam begat Seth; and Seth begat Enos; and Enos begat",
    "And Arphaxad begat Salah; and Salah begat",
    "And Nahor begat Terah; and Terah begat",
    "And Ram begat Amminadab; and Amminadab begat Nahshon; and Nahshon begat",
)
"""Genealogies: a narrow kind of text, which the model routes to few experts."""
SLOTS_MORE = {2: 2, 4: 8}
"""Redundant experts a layer, by ranks."""
SETTING = Balance(interval_steps=40, window_steps=4, min_gain=0.01)
RESTLESS = Balance(interval_steps=10, window_steps=10, min_gain=0.0, moves=8)
"""Moves whatever gains anything, all the time and without redundant slots: many steps have experts on their way."""
SETTLE_S = 0.5
AROUND = 20
"""Steps before and after one that it is held against."""
MOST_WITH, LEAST_WITHOUT, SLOWEST = 1.1, 1.2, 1.5


@dataclass(frozen=True)
class Outcome:
    """What one service did.

    tokens: of each round's requests. before, after: rank 0's account after the first round and after the last.
    steps_GX: of each rank's full decode steps, (when, seconds, tokens, migrating, balancing thread's processor time).
    """

    tokens: list[list[list[int]]]
    before: BalanceStats
    after: BalanceStats
    received: list[BalanceStats]
    steps_GX: list[np.ndarray]

    def balance(self) -> tuple[float, float]:
        """Return max/mean of the rounds after the first: as it was split, and had it been split equally."""
        mean = sum(self.after.sum_of_mean_L) - sum(self.before.sum_of_mean_L)
        split = sum(self.after.sum_of_max_split_L) - sum(self.before.sum_of_max_split_L)
        equal = sum(self.after.sum_of_max_equal_L) - sum(self.before.sum_of_max_equal_L)
        return split / mean, equal / mean

    def worst_layer(self) -> float:
        """Return max/mean of the layer that has most."""
        mean_L = np.subtract(self.after.sum_of_mean_L, self.before.sum_of_mean_L)
        return float((np.subtract(self.after.sum_of_max_split_L, self.before.sum_of_max_split_L) / mean_L).max())

    def seconds(self, *, moving: bool) -> np.ndarray:
        """Return how long full decode steps took, those with or those without a migration under way."""
        return np.concatenate([steps_X[steps_X[:, 3] == moving, 1] for steps_X in self.steps_GX])

    def balancing(self, *, moving: bool) -> np.ndarray:
        """Return how much processor time the rank's balancing thread took meanwhile, in seconds."""
        return np.concatenate([steps_X[steps_X[:, 3] == moving, 4] for steps_X in self.steps_GX])

    def beside_neighbours(self, *, moving: bool) -> np.ndarray:
        """Return the same in parts of the median of the steps around each, so that a machine's moods fall out."""
        return np.concatenate(
            [(steps_X[:, 1] / medians(steps_X[:, 1]))[steps_X[:, 3] == moving] for steps_X in self.steps_GX]
        )


def medians(seconds_X: np.ndarray) -> np.ndarray:
    """Return the median of the steps around each step."""
    padded_X = np.pad(seconds_X, AROUND, mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded_X, 2 * AROUND + 1), axis=1)


async def complete(service: Service, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the tokens of every prompt's completion, all asked for at once."""

    async def one(index: int, prompt: list[int]) -> list[int]:
        sampling = Sampling(max_tokens=OUTPUT, temperature=0.5, seed=index, ignore_eos=True)
        request = GenerationRequest(request_id=f"bench-{index}", choices=[ChoiceSpec(prompt, sampling)])
        deltas = [delta async for batch in service.router.submit(request) for delta in batch]
        return [event.token_id for delta in deltas for event in delta.events]

    return list(await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(prompts))))


async def run(ranks: int, prompts: Sequence[list[int]], balance: Balance | None) -> Outcome:
    """Bring a service up, ask it round after round, take it down."""
    wanted = Deployment(
        gateway=Gateway(port=0),
        unified=Pool(ranks=ranks),
        exchange=Exchange(implementation="tcp"),
        balance=balance,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER_VARIABLE] = folder
        async with running_service(wanted, target="timed_rank:run_rank") as service:
            tokens = [await complete(service, prompts)]
            before = (await accounts(service))[0]
            tokens += [await complete(service, prompts) for _ in range(ROUNDS - 1)]
            received = await accounts(service)
        steps_GX = [full_steps(Path(folder) / f"unified-{rank}.json") for rank in range(ranks)]
    return Outcome(tokens, before, received[0], received, steps_GX)


async def accounts(service: Service) -> list[BalanceStats]:
    """Return what each rank last told, once it has told of everything."""
    await asyncio.sleep(SETTLE_S)
    return [rank.stats.balance for rank in service.router.ranks.values() if rank.stats is not None]


def full_steps(path: Path) -> np.ndarray:
    """Return the steps in which most tokens came out of a rank: decode, everybody taking part."""
    steps_X = np.array(json.loads(path.read_text(encoding="ascii")))
    counts, times = np.unique(steps_X[:, 2], return_counts=True)
    return steps_X[steps_X[:, 2] == counts[times.argmax()]]


def balance_table(outcomes: dict[str, Outcome]) -> Table:
    """Return who balanced how well, and what it took."""
    rows = []
    for name, outcome in outcomes.items():
        split, equal = outcome.balance()
        last = outcome.after
        rows.append(
            (
                name,
                f"{split:.3f}",
                f"{equal:.3f}",
                f"{outcome.worst_layer():.3f}",
                f"{last.layers_migrated}",
                f"{sum(each.experts_moved for each in outcome.received)}",
                byte_text(sum(each.migration_bytes for each in outcome.received)),
                f"{last.migrations_failed}",
                "-" if last.forecast_balance is None else f"{last.forecast_balance:.3f}",
                "-" if last.realised_balance is None else f"{last.realised_balance:.3f}",
            )
        )
    columns = (
        "max/mean rows a rank", "computed", "split equally", "worst layer", "layers moved", "experts received", "bytes",
        "failed", "forecast", "realised",
    )  # fmt: skip
    return Table(title="", columns=columns, rows=tuple(rows))


def time_table(outcomes: dict[str, Outcome]) -> Table:
    """Return the distribution of step times, with and without experts on their way."""
    rows = []
    for name, outcome in outcomes.items():
        for moving in (False, True):
            ms_X, parts_X = outcome.seconds(moving=moving) * 1e3, outcome.beside_neighbours(moving=moving)
            thread_X = outcome.balancing(moving=moving) * 1e3
            if ms_X.size:
                rows.append(
                    (
                        f"{name}, {'experts on their way' if moving else 'nothing moves'}",
                        f"{ms_X.size}",
                        *(f"{np.percentile(ms_X, at):.1f}" for at in (50, 99, 100)),
                        *(f"{np.percentile(parts_X, at):.2f}" for at in (50, 99, 100)),
                        f"{(parts_X > SLOWEST).mean() * 100:.2f} %",
                        *(f"{np.percentile(thread_X, at):.1f}" for at in (50, 99, 100)),
                    )
                )
    columns = (
        "ms a decode step", "steps", "median", "99 %", "slowest", "to neighbours: median", "99 %", "slowest",
        f"above {SLOWEST}", "thread: median", "99 %", "most",
    )  # fmt: skip
    return Table(title="", columns=columns, rows=tuple(rows))


def verdicts(plain: Outcome, still: Outcome, balanced: Outcome, restless: Outcome) -> list[str]:
    """Return what was wanted beside what was found."""
    same = plain.tokens == still.tokens == balanced.tokens == restless.tokens
    without, found = still.balance()[0], balanced.balance()[0]
    noise_X = still.beside_neighbours(moving=False)
    lines = [
        f"tokens the same as of one rank: {_yes(same)}",
        f"balance {without:.3f} without [balance], wanted above {LEAST_WITHOUT}: {_yes(without > LEAST_WITHOUT)}",
        f"balance {found:.3f} with [balance], wanted below {MOST_WITH}: {_yes(found < MOST_WITH)}",
    ]
    for name, outcome in {"[balance]": balanced, "restless": restless}.items():
        moving_X = outcome.beside_neighbours(moving=True)
        if moving_X.size:
            slow = (moving_X > SLOWEST).mean() * 100
            lines.append(
                f"{name}: slowest step while experts move {moving_X.max():.2f} x the median around it, wanted at most "
                f"{SLOWEST}: {_yes(moving_X.max() <= SLOWEST)}; {slow:.2f} % of them above"
            )
    slow = (noise_X > SLOWEST).mean() * 100
    return [*lines, f"where nothing ever moves: slowest step {noise_X.max():.2f} x, {slow:.2f} % above {SLOWEST} x"]


def _yes(found: bool) -> str:  # noqa: FBT001 - a word for a truth value
    return "yes" if found else "NO"


def encoded() -> list[list[int]]:
    """Return the prompts."""
    tokenizer = ModelTokenizer.read(resolve_model_path("bundled"))

    async def encode() -> list[list[int]]:
        texts = [BEGINNINGS[index % len(BEGINNINGS)] for index in range(REQUESTS)]
        return [await tokenizer.encode(text, add_special_tokens=True, limit=512, param="prompt") for text in texts]

    return asyncio.run(encode())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/live_balance_*.md")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ["OMP_NUM_THREADS"] = "1"
    prompts = encoded()
    plain = asyncio.run(run(1, prompts, None))
    found, said = {"one rank": plain}, list[str]()
    for ranks in options.ranks:
        redundant = SLOTS_MORE.get(ranks, ranks)
        ways = {
            f"{ranks} ranks, experts in order (baseline)": None,
            f"{ranks} ranks, [balance], {redundant} redundant": replace(SETTING, redundant_experts=redundant),
            f"{ranks} ranks, [balance], restless": RESTLESS,
        }
        outcomes = {name: asyncio.run(run(ranks, prompts, balance)) for name, balance in ways.items()}
        found |= outcomes
        said += [f"{ranks} ranks: {line}" for line in verdicts(plain, *outcomes.values())]
    tables = [*plain_lines(balance_table(found)), "", *plain_lines(time_table(found))]
    print(*tables, "", *said, sep="\n")
    if options.write:
        print(
            "written:", write_page("live_balance", title="Experts in balance while serving", lines=page(tables, said))
        )


def page(tables: list[str], said: list[str]) -> list[str]:
    """Return the body of the page of results."""
    settings = [
        ", ".join(
            f"{name} = {getattr(balance, name)}" for name in ("interval_steps", "window_steps", "min_gain", "moves")
        )
        for balance in (SETTING, RESTLESS)
    ]
    what = (
        f"The bundled model (32 experts, top 4, 8 layers), {REQUESTS} requests at a time for {OUTPUT} tokens each, "
        f"{ROUNDS} rounds; balance is of the rounds after the first. [balance] with {settings[0]}; restless, to have "
        f"many steps with experts on their way, with {settings[1]}. {os.cpu_count()} cores do everything: the ranks, "
        "their balancing threads, the gateway, and who asks; other work on the machine was kept away but for its host."
    )
    how = (
        "`thread` is the processor time that the balancing thread of a rank took during a step, in ms: what a step can "
        "lack because experts move, where no core is free. What else makes steps slow here makes them slow where "
        "nothing moves, too: ranks, gateway and client share the cores."
    )
    return [what, "", *(f"    {line}".rstrip() for line in tables), "", *(f"- {line}" for line in said), "", how]


if __name__ == "__main__":
    sys.exit(main())
