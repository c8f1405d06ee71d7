"""Golden files of rendered plans: the default plan of every example cluster, target by target.

They lie in tests/golden/lanes/<cluster>/<target>; "init" stands for the commented plan itself. When a change of
what is rendered is meant, write them again and read the difference before you commit it:

    python tests/support/lane_goldens.py sonic nvue eos
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from fourlane.lanes.commented import commented_plan
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.render import TARGETS
from fourlane.spec.load import load_cluster

GOLDEN = Path(__file__).parents[1] / "golden/lanes"
CLUSTERS = ("h800-ft", "lab", "one-network")


def rendered(cluster_name: str, target: str) -> dict[str, str]:
    """Return what a target makes of a cluster's default plan."""
    cluster = load_cluster(cluster_name)
    if target == "init":
        return {"lanes.toml": commented_plan(cluster)}
    module = importlib.import_module(TARGETS[target].module)
    return getattr(module, f"render_{target}")(default_plan(cluster), cluster)


def kept(cluster_name: str, target: str) -> dict[str, str]:
    """Return the golden files of a cluster and target."""
    folder = GOLDEN / cluster_name / target
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()}


def refresh(target: str) -> None:
    """Write a target's golden files anew."""
    for name in CLUSTERS:
        folder = GOLDEN / name / target
        for old in kept(name, target):
            (folder / old).unlink()
        for path, text in rendered(name, target).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        refresh(wanted)
