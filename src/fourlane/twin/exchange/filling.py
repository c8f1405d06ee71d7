"""Fill tables of exchange times by packet runs, once: they are kept in a cache under all that went into them.

    table = exchange_times(exchange_setting(architecture, cluster, ranks=64, phase="decode", lanes=case))

Common tables come with the package (`filled.json`, made by `tools/fill_exchange_tables.py`). Not for how a table is
read (`fourlane.twin.exchange.table`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any

import msgspec

from fourlane import __version__
from fourlane.twin.exchange.cache import keep, kept, key_of
from fourlane.twin.exchange.runs import ExchangeRun, completed
from fourlane.twin.exchange.shipped import shipped_table
from fourlane.twin.exchange.table import ExchangeTable, Measured
from fourlane.twin.fabric.expert_kernels import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.twin.exchange.setting import ExchangeSetting
    from fourlane.twin.fabric.parallel import ManyProgress
    from fourlane.twin.fabric.topology import Topology

__all__ = ["FilledTable", "exchange_tables", "exchange_times", "key_of_setting", "runs_of"]

FORMAT = 1
"""Of tables, and of which runs fill them; raised when either changes, or when the simulator's times do."""
KIND = "exchange"
LEVELS = (1.0, 1.6)
"""Imbalances that are run: none, and more than policies usually leave."""
_TOKENS_OF_ALL = {"low-latency": 4096, "normal": 3 << 15}
"""Tokens of all ranks together in the largest run, which then takes a fraction of a second."""
_LEAST_LARGE, _MOST_LARGE = {"low-latency": 32, "normal": 512}, {"low-latency": 256, "normal": 2048}
_SKEWED_NORMAL = 1024
_FEW = 16
"""Runs from which on processes of their own are worth their start."""


class FilledTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table as it is kept: its runs, and where they come from."""

    key: str
    format: int
    made: str
    simulator: str
    setting: dict[str, Any]
    runs: tuple[Measured, ...]


def exchange_times(
    setting: ExchangeSetting,
    *,
    progress: Callable[[ManyProgress], object] | None = None,
    processes: int | None = None,
) -> ExchangeTable:
    """Return a setting's times, from the cache or by packet runs.

    Args:
        setting: what is exchanged, and where.
        progress: called while packets are simulated.
        processes: that simulate at once; None: as many as there are processors, where that is worth while.

    Raises:
        SpecError: the setting makes no sense.
        SimulationError: a run did not end.
    """
    return exchange_tables([setting], progress=progress, processes=processes)[0]


def exchange_tables(
    settings: Sequence[ExchangeSetting],
    *,
    progress: Callable[[ManyProgress], object] | None = None,
    processes: int | None = None,
) -> list[ExchangeTable]:
    """Return the times of several settings, all runs that are missing side by side; otherwise as `exchange_times`."""
    keys = [key_of_setting(setting) for setting in settings]
    held = {key: _held(key) for key in keys}
    wanted = {key: setting for key, setting in zip(keys, settings, strict=True) if held[key] is None}
    for key, table in _fill(wanted, progress, processes).items():
        keep(KIND, key, table)
        held[key] = table.runs
    return [ExchangeTable(setting, held[key] or (), key) for key, setting in zip(keys, settings, strict=True)]


def runs_of(setting: ExchangeSetting) -> list[ExchangeRun]:
    """Return the runs a table is filled by: each operation, balanced and not, with few tokens and with more.

    The more ranks, the fewer tokens each. With normal kernels, imbalance is run at one size.
    """
    if setting.ranks == 1:
        return []
    mode = setting.mode
    large = max(_LEAST_LARGE[mode], min(_MOST_LARGE[mode], _TOKENS_OF_ALL[mode] // setting.ranks))
    if mode == "normal":
        sizes = {LEVELS[0]: sorted({16, 64, 128, 256, 512, large}), LEVELS[1]: [min(large, _SKEWED_NORMAL)]}
    else:
        sizes = {level: sorted({4, max(4, large // 16), large // 4, large}) for level in LEVELS}
    return [
        ExchangeRun(setting, operation, tokens, level)
        for level, counts in sizes.items()
        for tokens in counts
        for operation in OPERATIONS
    ]


def key_of_setting(setting: ExchangeSetting) -> str:
    """Return the key of a setting's table: of its network as it is simulated, its lanes, its messages, its runs."""
    return _key(msgspec.json.encode(setting, enc_hook=int), setting)


def _key(encoded: bytes, setting: ExchangeSetting) -> str:
    if encoded not in _KEYS:
        messages = {name: getattr(setting, name) for name in ("ranks", "mode", "on_nvlink", "cross_rail", "top_k")}
        messages |= {"sizes": [setting.message(each) for each in OPERATIONS]}
        messages |= setting.choices if setting.mode == "normal" else {}
        runs = [(run.operation, run.tokens, run.max_over_mean, run.seed) for run in runs_of(setting)]
        _KEYS[encoded] = key_of([FORMAT, *_arrays(setting.topology()), setting.lanes.plain, messages, runs])
    return _KEYS[encoded]


_KEYS: dict[bytes, str] = {}
"""Keys of settings met before, as they never change."""


def _arrays(topology: Topology) -> list[Any]:
    """Return all that a topology consists of, but its name."""
    given = {field.name: getattr(topology, field.name) for field in dataclasses.fields(topology)}
    return [value for name, value in sorted(given.items()) if name != "name"]


def _held(key: str) -> tuple[Measured, ...] | None:
    """Return the runs of a table that is kept, or came with the package."""
    found = kept(KIND, key, FilledTable)
    if found is not None and found.key == key:
        return found.runs
    return shipped_table(key)


def _fill(
    wanted: dict[str, ExchangeSetting], progress: Callable[[ManyProgress], object] | None, processes: int | None
) -> dict[str, FilledTable]:
    """Run what tables are missing."""
    topologies = {key: setting.topology() for key, setting in wanted.items()}
    runs = [(key, run) for key, setting in wanted.items() for run in runs_of(setting)]
    if not runs:
        return {key: _filled(key, setting, ()) for key, setting in wanted.items()}
    if processes is None and len(runs) < _FEW:
        processes = 1
    found: dict[str, list[Measured]] = {key: [] for key in wanted}
    done = completed([run for _, run in runs], processes, progress)
    for (key, run), results in zip(runs, done, strict=True):
        time = run.read(results, topologies[key])
        found[key].append(
            Measured(
                operation=run.operation,
                tokens=run.tokens,
                max_over_mean=run.max_over_mean,
                seconds=time.seconds,
                nic=round(time.nic, 4),
                nvlink=round(time.nvlink, 4),
            )
        )
    return {key: _filled(key, wanted[key], tuple(measured)) for key, measured in found.items()}


def _filled(key: str, setting: ExchangeSetting, runs: tuple[Measured, ...]) -> FilledTable:
    return FilledTable(
        key=key,
        format=FORMAT,
        made=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        simulator=f"fourlane {__version__}",
        setting=msgspec.to_builtins(setting, enc_hook=str, str_keys=True),
        runs=runs,
    )
