"""What the benchmark of exchanges claims of what it measured, and the pages it makes of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bench_exchange
import exchange_page
import exchange_parts
import overlap_parts
import result_page
from recorded_parts import Bar, Part, record

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


TRACKS = [
    {
        "process": f"two streams, rank {rank}",
        "name": "stream 0",
        "slices": [{"name": "experts", "category": "compute", "begin_s": 0.0, "end_s": 0.002}],
    }
    for rank in (0, 1)
]
RULE = {"by_rule": 0.99, "dual_share": 0.5, "predicted": 1.1}


def rows(*, link: bool, faster: float, over: float = 1.0) -> list[dict[str, Any]]:
    """Return a summary as `fourlane bench exchange` writes it, all alike."""
    names = (
        ("torch_all_to_all", "tcp") if link else ("memcpy", "memcpy alone", "torch_all_to_all", "tcp", "shared_memory")
    )
    sizes = exchange_parts.LINK_SIZES if link else (*exchange_parts.DECODE_SIZES, exchange_parts.LARGE)
    return [
        {
            "way": way,
            "ranks": ranks,
            "implementation": name,
            "bytes_per_pair": size,
            **dict.fromkeys(("p10_s", "p50_s", "p90_s", "p99_s"), 1e-3 * over),
            "bytes_per_s": 1e9,
            "times_faster_than_gloo": None if name.startswith("memcpy") else faster,
            "share_of_memcpy": None if link else 0.6,
            "ideal_line_s": 1e-3 if link else None,
        }
        for way in ("plain", "pair")
        for ranks in (2, 4, 8)
        for size in sizes
        for name in names
    ]


def test_each_bar_of_exchanges_is_met_or_missed_by_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for faster, met in ((12.0, {True}), (2.0, {False})):
        monkeypatch.setattr(exchange_parts, "run_command", lambda *_, f=faster: {"summary": rows(link=False, faster=f)})
        bars = exchange_parts.PARTS["here"]().bars
        assert len(bars) == 3 * 3 + 2 + 1
        assert {bar.met for bar in bars[:-1]} == met
        assert bars[-1].met
    for over, met in ((1.04, True), (1.06, False)):
        found = {"summary": rows(link=True, faster=1.5, over=over), "notes": []}
        monkeypatch.setattr(exchange_parts, "run_command", lambda *_, found=found: found)
        bars = exchange_parts.PARTS["link"]().bars
        assert [bar.met for bar in bars] == [False, True, *[met] * (2 * len(exchange_parts.LINK_SIZES))]


def test_gains_are_held_to_the_bar_where_communication_is_about_half(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(*of: tuple[float, float]) -> dict[str, Any]:
        times = [{"gloo_s": 2.0, "single_s": 1.0, "dual_s": dual, "alone_s": alone} for dual, alone in of]
        return {
            "cases": [{"link": "200Mbps", "tokens": 64, **each, **RULE} for each in times],
            "tracks": [],
            "notes": [],
        }

    found = cases((0.7, 0.5), (0.8, 0.5), (0.9, 0.2))
    monkeypatch.setattr(overlap_parts, "run_command", lambda *_: found)
    assert [bar.met for bar in overlap_parts.PARTS["decode"]().bars] == [True, False, True]
    found = cases((0.7, 0.9))
    gain, worst = overlap_parts.PARTS["decode"]().bars
    assert (gain.found, gain.met) == ("0", False)
    assert (worst.found, worst.met) == ("0.99 times", True)


def test_pages_say_which_bars_were_missed_and_hold_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_page, "FOLDER", tmp_path)
    monkeypatch.setattr(exchange_page, "DOCS", tmp_path)
    monkeypatch.setattr(exchange_page, "IMAGES", tmp_path / "images")
    found = {"summary": rows(link=False, faster=2.0)}
    monkeypatch.setattr(exchange_parts, "run_command", lambda *_: found)
    record("here", exchange_parts.PARTS["here"](), tmp_path / "r.json", script="bench_exchange.py")
    case = {"link": "200Mbps", "tokens": 64, "gloo_s": 2.0, "single_s": 1.0, "dual_s": 0.7, "alone_s": 0.5}
    monkeypatch.setattr(
        overlap_parts, "run_command", lambda *_: {"cases": [{**case, **RULE}], "tracks": TRACKS, "notes": []}
    )
    record("decode", overlap_parts.PARTS["decode"](), tmp_path / "r.json", script="bench_exchange.py")
    page, docs, *pictures = exchange_page.write(tmp_path / "r.json", order=list(bench_exchange.PARTS))
    text = docs.read_text()
    assert "**3 of 14 bars are reached.**" in text
    assert "beside gloo | >= 10 times | 2.00 times | **miss** |" in text
    assert "| 200Mbps | 64 | 2,000 | 1,000 | 500 | 50.0 % | 700 | 1.43 | 2.00 | 2.86 | 0.99 | 50% | 1.10 |" in text
    assert [path.name for path in pictures] == ["exchange-here.png", "overlap-decode.png", "overlap-decode-streams.png"]
    assert all(f"](images/{path.name})" in text and path.read_bytes()[:4] == b"\x89PNG" for path in pictures)
    assert "- MISS: shared_memory" in page.read_text()


def test_a_run_ends_with_status_1_where_a_bar_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for met, status in ((True, 0), (False, 1)):
        part = Part(title="t", text="", sections=[], bars=[Bar("claim", "1", "2", met=met)])
        monkeypatch.setitem(bench_exchange.PARTS, "here", lambda part=part: part)
        monkeypatch.setattr("sys.argv", ["bench_exchange.py", "--part", "here"])
        assert bench_exchange.main() == status
        assert ("MISS" in capsys.readouterr().out) is not met
