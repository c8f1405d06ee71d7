"""Fill the tables of exchange times that come with the package: common models, clusters, EP degrees and lanes.

    python tools/fill_exchange_tables.py            # some minutes on two cores

The same code fills the same tables: all draws have seeds. What is kept or shipped is not run again; after a change to
the simulator, raise `FORMAT` in `fourlane.twin.exchange.filling`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import fourlane
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import Lanes
from fourlane.twin.exchange import exchange_setting, exchange_tables, lanes_case
from fourlane.twin.exchange.background import beside_kv, key_beside_kv
from fourlane.twin.exchange.shipped import Shipped, ShippedRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.twin.exchange import ExchangeSetting

FILLED = Path(fourlane.__file__).parent / "twin" / "exchange" / "filled.json"
PREFILL, DECODE = (4, 8, 16, 32, 64), (4, 8, 16, 32, 64, 96, 128, 144, 192, 256, 320)
RUNGS: tuple[dict[str, Any], ...] = (
    {"routing": "ecmp", "expert_queue": "shared", "ecn": True, "kv": "hpn"},
    {"routing": "adaptive", "expert_queue": "shared", "ecn": True, "kv": "hpn"},
    {"routing": "adaptive", "expert_queue": "own", "ecn": True, "kv": "hpn"},
    {"routing": "adaptive", "expert_queue": "own", "ecn": False, "kv": "hpn"},
)
"""The lanes of a ladder, from its foot up; its last rung is the default."""
POINTS: tuple[tuple[str, str, str | None, tuple[int, ...], tuple[int, ...], tuple[dict[str, Any], ...]], ...] = (
    ("deepseek-v3", "h800-ft", None, PREFILL, DECODE, ({}, {"routing": "ecmp"}, {"kv": "hpn"})),
    ("deepseek-v3", "h800-ft", "h100", (32,), (64, 72, 128, 144), ({},)),
    ("deepseek-v3", "h800-10k", None, PREFILL, DECODE, ({}, {"routing": "ecmp"}, {"kv": "hpn"})),
    ("deepseek-v3", "h800-ft", None, (32,), (144,), RUNGS),
    ("deepseek-v3", "h800-10k", None, (32,), (144,), RUNGS),
    ("kimi-k2", "h800-ft", None, PREFILL, (), ({},)),
    ("qwen3-235b-a22b", "h800-ft", None, PREFILL, DECODE, ({},)),
    ("qwen3-235b-a22b", "rails-400g", "h800", (4, 8, 16), (4, 8, 16, 32, 64), ({}, {"expert_queue": "shared"})),
)
"""Model, cluster, GPU (None: the cluster's), EP degrees of prefill and decode, lanes."""


def settings() -> Iterator[ExchangeSetting]:
    """Yield the settings to fill."""
    for model, cluster, gpu, prefill, decode, cases in POINTS:
        architecture, read = load_architecture(model), load_cluster(cluster)
        for lanes in cases:
            case = lanes_case(Lanes(**lanes), read)
            for phase, degrees in (("prefill", prefill), ("decode", decode)):
                for ranks in degrees:
                    yield exchange_setting(architecture, read, ranks=ranks, phase=phase, lanes=case, gpu=gpu)


def main() -> int:
    """Fill the tables and write them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    tables = exchange_tables(
        list(settings()), progress=lambda now: print(f"\r{now.done}/{now.total}", end="", file=sys.stderr)
    )
    shared = [table for table in tables if table.setting.lanes.kv_network == "hpn" and table.setting.by_nic]
    shipped = Shipped(
        made=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        simulator=f"fourlane {fourlane.__version__}",
        tables={table.key: tuple(ShippedRun(*msgspec.structs.astuple(run)) for run in table.runs) for table in tables},
        beside_kv={key_beside_kv(table): beside_kv(table) for table in shared},
    )
    text = msgspec.json.encode(shipped).decode().replace('"}],', '"}],\n').replace("]],", "]],\n")
    FILLED.write_text(text + "\n", encoding="utf-8")
    print(f"{len(shipped.tables)} tables, {len(shipped.beside_kv)} beside KV cache: {FILLED.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
