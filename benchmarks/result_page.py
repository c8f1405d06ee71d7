"""Write a dated page of results: figures, hardware, versions, command. Used by the `bench_*` scripts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FOLDER", "hardware_slug", "write_page"]

PACKAGES = ("fourlane", "torch", "triton", "transformers", "numpy", "msgspec", "uvicorn", "pyzmq")
FOLDER = Path(__file__).parent / "results"


def write_page(theme: str, *, title: str, lines: Sequence[str], hardware: str | None = None) -> Path:
    """Write benchmarks/results/THEME_HARDWARE_YYYYMM.md and return its path.

    Args:
        theme: what was measured, such as "serve_vs_hf".
        lines: the body: tables as printed, in Markdown or indented by four blanks.
        hardware: a short name for the file; None: made from the processor's.
    """
    now = datetime.now(UTC)
    slug = hardware or hardware_slug()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{theme}_{slug}_{now:%Y%m}.md"
    text = "\n".join(
        [
            f"# {title}",
            "",
            *lines,
            "",
            "## How",
            "",
            f"- date: {now:%Y-%m-%d}",
            f"- hardware: {_processor()}, {os.cpu_count()} logical cores, {_memory()}; {_kernel()}",
            f"- load average while it ran (1, 5, 15 min): {', '.join(f'{load:.1f}' for load in os.getloadavg())}",
            f"- Python {platform.python_version()}, {', '.join(_versions())}",
            f"- command: `python {' '.join([_relative(sys.argv[0]), *sys.argv[1:]])}`",
            "",
        ]
    )
    path.write_text(text, encoding="utf-8")
    return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def hardware_slug() -> str:
    """Return a short name of this machine: cores and processor."""
    words = re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*", "", _processor()).lower()
    return f"{os.cpu_count()}x-{'-'.join(re.findall(r'[a-z0-9]+', words)[:3])}"


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / (1 << 30):.0f} GiB"


def _kernel() -> str:
    return f"{platform.system()} {platform.release()}"


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _relative(path: str) -> str:
    try:
        return str(Path(path).resolve().relative_to(Path(__file__).resolve().parents[1]))
    except ValueError:
        return path
