"""Tables are filled once: kept where processes share them, refilled when anything differs, shipped where common."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.cluster import Cluster
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import Lanes
from fourlane.twin.exchange import (
    ExchangeSetting,
    cache,
    exchange_setting,
    exchange_tables,
    exchange_times,
    lanes_case,
    runs,
)
from fourlane.twin.exchange.filling import KIND, FilledTable, key_of_setting, runs_of
from fourlane.twin.exchange.shipped import shipped_table
from fourlane.twin.fabric.simulator import Simulator
from fourlane.units import Duration

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.twin.exchange.runs import ExchangeRun
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.times import Phase


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOURLANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small_cluster(**changes: Any) -> Cluster:
    """Return a cluster that no table is shipped for."""
    read = load_cluster("h800-ft")
    leaf = msgspec.structs.replace(read.hpn.leaf, latency=Duration.parse("613ns"))
    changed = {name: getattr(read, name) for name in read.__struct_fields__}
    return Cluster(**changed | {"hpn": msgspec.structs.replace(read.hpn, leaf=leaf)} | changes)


def setting_on(cluster: Cluster, *, ranks: int = 4, phase: Phase = "decode", **lanes: Any) -> ExchangeSetting:
    return exchange_setting(
        load_architecture("qwen3-30b-a3b"), cluster, ranks=ranks, phase=phase, lanes=lanes_case(Lanes(**lanes), cluster)
    )


def file_of(folder: Path, setting: ExchangeSetting) -> Path:
    return folder / KIND / f"{key_of_setting(setting)}.json"


def test_a_table_is_kept_with_all_that_went_into_it(folder: Path) -> None:
    setting = setting_on(small_cluster())
    table = exchange_times(setting, processes=1)
    held = msgspec.json.decode(file_of(folder, setting).read_bytes(), type=FilledTable)
    assert held.runs == table.runs
    assert len(held.runs) == len(runs_of(setting)) > 0
    assert held.simulator.startswith("fourlane ")
    assert held.setting["cluster"]["hpn"]["leaf"]["latency"] == "613ns"
    assert time.strptime(held.made, "%Y-%m-%d")
    assert [path.name for path in (folder / KIND).iterdir()] == [f"{table.key}.json"], "nothing half-written is left"


def test_what_is_kept_is_not_simulated_again(folder: Path) -> None:
    setting = setting_on(small_cluster())
    exchange_times(setting, processes=1)
    path = file_of(folder, setting)
    held = msgspec.json.decode(path.read_bytes(), type=FilledTable)
    slow = [msgspec.structs.replace(run, seconds=run.seconds + 1.0) for run in held.runs]
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(held, runs=tuple(slow))))
    assert exchange_times(setting, processes=1).network_s("dispatch", 64) > 1.0


def test_a_changed_input_is_another_table_and_a_name_is_none(folder: Path) -> None:
    cluster = small_cluster()
    other = msgspec.structs.replace(cluster.hpn, leaf=msgspec.structs.replace(cluster.hpn.leaf, latency=Duration(1)))
    settings = [
        setting_on(cluster),
        setting_on(msgspec.structs.replace(cluster, hpn=other)),
        setting_on(cluster, ranks=8),
        setting_on(cluster, phase="prefill"),
        setting_on(cluster, routing="ecmp"),
        setting_on(cluster, ecn=True),
    ]
    assert len({key_of_setting(setting) for setting in settings}) == len(settings)
    renamed = msgspec.structs.replace(cluster, name="ours")
    assert key_of_setting(setting_on(renamed)) == key_of_setting(settings[0])
    assert not folder.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": 3}', b"\xff\xfe", b"[]"])
def test_a_damaged_file_is_told_of_and_made_anew(folder: Path, damage: bytes) -> None:
    setting = setting_on(small_cluster())
    before = exchange_times(setting, processes=1)
    file_of(folder, setting).write_bytes(damage)
    with pytest.warns(cache.CacheWarning, match="it is worked out anew"):
        after = exchange_times(setting, processes=1)
    assert after.runs == before.runs
    assert msgspec.json.decode(file_of(folder, setting).read_bytes(), type=FilledTable).runs == before.runs


def test_a_file_under_anothers_name_is_not_believed(folder: Path) -> None:
    cluster = small_cluster()
    exchange_times(setting_on(cluster, ranks=8), processes=1)
    setting = setting_on(cluster)
    file_of(folder, setting_on(cluster, ranks=8)).rename(file_of(folder, setting))
    found = exchange_times(setting, processes=1)
    assert found.key == key_of_setting(setting)
    assert msgspec.json.decode(file_of(folder, setting).read_bytes(), type=FilledTable).key == found.key


def test_without_a_folder_to_write_in_tables_are_filled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FOURLANE_CACHE", str(tmp_path / "file"))
    with pytest.warns(cache.CacheWarning, match="FOURLANE_CACHE names a folder"):
        table = exchange_times(setting_on(small_cluster()), processes=1)
    assert table.network_s("dispatch", 64) > 0


def test_the_folder_is_named_by_the_environment_or_lies_where_caches_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FOURLANE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "fourlane"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "fourlane"


def test_what_was_not_used_for_longest_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Held(msgspec.Struct):
        key: str

    for place, key in enumerate(("one", "two", "six")):
        cache.keep("things", key, Held(key))
        os.utime(folder / "things" / f"{key}.json", (place, place))
    assert cache.kept("things", "one", Held) is not None, "which counts as a use"
    size = (folder / "things" / "six.json").stat().st_size
    monkeypatch.setattr(cache, "MOST_BYTES", 3 * size)
    cache.keep("things", "ten", Held("ten"))
    assert {path.stem for path in (folder / "things").iterdir()} == {"one", "six", "ten"}


def test_those_who_read_while_others_write_see_whole_files(folder: Path) -> None:
    class Held(msgspec.Struct):
        key: str
        text: str

    def write() -> None:
        for size in range(200):
            cache.keep("things", "one", Held("one", "x" * (size * 100)))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(cache.kept("things", "one", Held))
    for writer in writers:
        writer.join()
    assert any(held is not None for held in seen), "a damaged file would have been warned of, which is an error here"
    assert [path.name for path in (folder / "things").iterdir()] == ["one.json"]


def test_many_settings_are_filled_side_by_side_with_progress() -> None:
    cluster = small_cluster()
    settings = [setting_on(cluster), setting_on(cluster, ranks=2), setting_on(cluster)]
    told = []
    tables = exchange_tables(settings, processes=2, progress=told.append)
    assert [table.setting.ranks for table in tables] == [4, 2, 4]
    assert tables[0].runs == tables[2].runs == exchange_times(setting_on(cluster), processes=1).runs
    assert told[-1].done == told[-1].total == len(runs_of(settings[0])) + len(runs_of(settings[1]))


def test_ctrl_c_ends_a_fill_and_keeps_nothing_half_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ctrl-C ends has results all the same: those of a run that is not complete."""

    def interrupted(given: list[ExchangeRun], **_: object) -> list[Results]:
        return [Simulator(run.compile()).results() for run in given]

    monkeypatch.setattr(runs, "run_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exchange_times(setting_on(small_cluster()), processes=1)
    assert not (folder / KIND).exists()


@pytest.mark.parametrize(("ranks", "phase"), [(8, "decode"), (16, "decode"), (4, "prefill")])
def test_shipped_tables_are_what_packets_say_now(ranks: int, phase: Phase) -> None:
    cluster = load_cluster("h800-ft")
    setting = exchange_setting(
        load_architecture("deepseek-v3"), cluster, ranks=ranks, phase=phase, lanes=lanes_case(Lanes(), cluster)
    )
    shipped = shipped_table(key_of_setting(setting))
    assert shipped is not None, "make them anew: python tools/fill_exchange_tables.py"
    net = setting.topology()
    for run, held in zip(runs_of(setting), shipped, strict=True):
        assert run.read(run.scenario(net).run(), net).seconds == held.seconds, held


@pytest.mark.parametrize(
    ("model", "cluster", "gpu", "prefill", "decode"),
    [
        ("deepseek-v3", "h800-10k", None, 32, 144),
        ("deepseek-v3", "h800-ft", None, 32, 144),
        ("qwen3-235b-a22b", "rails-400g", "h800", 8, 16),
    ],
)
def test_twins_of_the_catalog_find_their_tables_shipped(
    model: str, cluster: str, gpu: str | None, prefill: int, decode: int
) -> None:
    read = load_cluster(cluster)
    for phase, ranks in (("prefill", prefill), ("decode", decode)):
        setting = exchange_setting(
            load_architecture(model), read, ranks=ranks, phase=phase, lanes=lanes_case(Lanes(), read), gpu=gpu
        )
        assert shipped_table(key_of_setting(setting)) is not None, "make them anew: tools/fill_exchange_tables.py"
