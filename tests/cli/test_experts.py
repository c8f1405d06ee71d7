"""`fourlane experts` on files, as a person runs it: figures, files, pictures, wrong use."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fourlane.cli import main
from fourlane.policy.placement import Placement, linear_placement
from fourlane.spec.expert_files import (
    LoadArrays,
    read_counts,
    read_loads,
    read_placement,
    write_counts,
    write_loads,
    write_placement,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = ("--layers", 4, "--experts", 32, "--groups", 4, "--top-k", 4, "--tokens", 20_000)


def experts(*words: object) -> Result:
    return CliRunner().invoke(main, ["experts", *map(str, words)])


def done(*words: object) -> Result:
    """Run a command that is to succeed."""
    result = experts(*words)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of prefill's and decode's loads, three windows each."""
    file = tmp_path_factory.mktemp("loads") / "loads.npz"
    done("generate", *SMALL, "--windows", 3, "-o", file)
    return file


@pytest.fixture(scope="module")
def placement(loads: Path) -> Path:
    """Return a placement of decode's loads on 8 ranks, 8 slots redundant."""
    file = loads.parent / "placement.json"
    done("place", loads, "--phase", "decode", "--ranks", 8, "--redundant", 8, "-o", file)
    return file


@pytest.fixture(scope="module")
def counts(loads: Path) -> Path:
    """Return two batches of 8 ranks in decode's layer 1."""
    file = loads.parent / "counts.npz"
    done(
        "generate", "--batches", 2, "--ranks", 8, "--loads", loads, "--phase", "decode", "--layer", 1, "--top-k", 4,
        "-o", file,
    )  # fmt: skip
    return file


def read(file: Path) -> Placement:
    held = read_placement(file)
    return Placement(held.slot_of_LP, experts=held.experts, ranks=held.ranks)


# generate ---------------------------------------------------------------------------------------------


def test_generated_loads_are_of_two_phases_and_the_same_for_the_same_seed(loads: Path, tmp_path: Path) -> None:
    first = read_loads(loads)
    assert list(first) == ["prefill", "decode"]
    assert first["decode"].load_WLE.shape == (3, 4, 32)
    assert (first["decode"].load_WLE.sum(axis=2) == 4 * 20_000).all()
    done("generate", *SMALL, "--windows", 3, "-o", tmp_path / "again.json")
    again = read_loads(tmp_path / "again.json")
    assert all((again[phase].load_WLE == first[phase].load_WLE).all() for phase in first)
    done("generate", *SMALL, "--windows", 3, "--seed", 1, "-o", tmp_path / "other.json")
    assert (read_loads(tmp_path / "other.json")["decode"].load_WLE != first["decode"].load_WLE).any()


@pytest.mark.parametrize("model", ["decode", "zipf", "lognormal", "single-hot"])
def test_every_model_of_loads_can_be_drawn(model: str, tmp_path: Path) -> None:
    done("generate", "--model", model, *SMALL, "--windows", 2, "-o", tmp_path / "loads.json")
    [(phase, load)] = read_loads(tmp_path / "loads.json").items()
    assert phase == ("decode" if model == "decode" else "mixed")
    hottest = load.load_WLE[0].max(axis=1) / load.load_WLE[0].mean(axis=1)
    assert (hottest > 1.5).all()


def test_generated_batches_have_every_ranks_tokens(counts: Path) -> None:
    count_WGE = read_counts(counts)
    assert count_WGE.shape == (2, 8, 32)
    assert (count_WGE.sum(axis=2) == 128 * 4).all()


# show -------------------------------------------------------------------------------------------------


def test_showing_loads_tells_skew_and_balance_over_time(loads: Path, placement: Path) -> None:
    words = ("--phase", "decode", "--placement", placement, "--redundant", 8)
    shown = done("show", loads, *words)
    assert "loads.npz: 4 layers of 32 experts" in shown.output
    assert "decode: hottest expert of each cell over the mean" in shown.output
    figures = json.loads(done("show", loads, *words, "--json").output)["phases"]["decode"]
    assert figures["windows"] == 3
    over_time = figures["balance_over_time"]
    load_WLE = read_loads(loads)["decode"].load_WLE
    assert over_time["placement"]["mean"] == pytest.approx([read(placement).balance(each).mean() for each in load_WLE])
    assert over_time["placed a window before"]["mean"][0] is None
    assert max(over_time["placed a window before"]["mean"][1:]) < min(over_time["linear"]["mean"])


def test_what_is_shown_of_phases_can_be_drawn(loads: Path, tmp_path: Path) -> None:
    done("show", loads, "--ranks", 8, "--plot", tmp_path / "loads.svg")
    drawn = (tmp_path / "loads.svg").read_text()
    assert "prefill over time" in drawn
    assert "decode: load of each expert" in drawn


def test_layers_without_experts_are_told_and_left_out(tmp_path: Path) -> None:
    file = tmp_path / "counted_by_sglang.json"
    count_LE = np.zeros((3, 8), dtype=int)
    count_LE[1:] = 10 * np.arange(1, 9)
    file.write_text(json.dumps({"logical_count": count_LE.tolist()}))
    shown = done("show", file, "--ranks", 4)
    assert "2 + 1 without load" in shown.output
    advice = json.loads(done("advise", file, "--ranks", 4, "--top-k", 2, "--json").output)
    assert advice["layers"] == 2


def test_a_dump_of_sglangs_recorder_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    count_WLE = torch.arange(2 * 3 * 8).reshape(2, 3, 8)
    torch.save({"logical_count": count_WLE}, tmp_path / "recorded.pt")
    figures = json.loads(done("show", tmp_path / "recorded.pt", "--json").output)["phases"]["mixed"]
    assert (figures["windows"], figures["layers"], figures["tokens"]) == (2, 3, count_WLE.sum().item())


@pytest.mark.parametrize(
    ("name", "form", "phase"),
    [("copy.json", "fourlane", "decode"), ("count.json", "sglang", "mixed"), ("history.json", "vllm", "mixed")],
)
def test_loads_that_are_shown_can_be_written_in_other_forms(
    loads: Path, tmp_path: Path, name: str, form: str, phase: str
) -> None:
    done("show", loads, "--phase", "decode", "--form", form, "-o", tmp_path / name)
    written, load_WLE = read_loads(tmp_path / name)[phase].load_WLE, read_loads(loads)["decode"].load_WLE
    expected = load_WLE.sum(axis=0, keepdims=True) if form == "sglang" else load_WLE
    assert written.tolist() == expected.tolist()


def test_what_cannot_be_written_from_show_is_refused(loads: Path, placement: Path, tmp_path: Path) -> None:
    both = experts("show", loads, "--form", "sglang", "-o", tmp_path / "x.json")
    assert (both.exit_code, "one phase" in both.output) == (2, True)
    placed = experts("show", placement, "-o", tmp_path / "x.json")
    assert (placed.exit_code, "experts export" in placed.output) == (2, True)


def test_showing_a_placement_counts_its_copies(placement: Path, tmp_path: Path) -> None:
    shown = done("show", placement, "--plot", tmp_path / "placement.png")
    assert "redundant replicas a layer" in shown.output
    figures = json.loads(done("show", placement, "--json").output)
    assert figures["held_slots"] == [40] * 4
    assert (tmp_path / "placement.png").read_bytes().startswith(b"\x89PNG")


class _Service(BaseHTTPRequestHandler):
    """Answers GET /experts/load from a file."""

    file: Path

    def do_GET(self) -> None:
        found = self.path == "/experts/load"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(self.file.read_bytes() if found else b"no such page")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answer(loads: Path, tmp_path: Path) -> Path:
    """Return the file that the service answers with."""
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(_document(loads)))
    return file


@pytest.fixture
def service(answer: Path) -> Iterator[str]:
    handler = type("Handler", (_Service,), {"file": answer})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def _document(loads: Path) -> dict[str, object]:
    phases = {name: {"window_steps": 7, "load_WLE": each.load_WLE.tolist()} for name, each in read_loads(loads).items()}
    return {"format": "fourlane.expert_load", "version": 1, "source": "a service", "phases": phases}


def test_the_loads_of_a_running_service_are_shown_like_a_files(service: str, loads: Path) -> None:
    of_service = json.loads(done("show", service, "--json").output)["phases"]
    of_file = json.loads(done("show", loads, "--json").output)["phases"]
    assert of_service["decode"].pop("window_steps") == 7
    assert of_file["decode"].pop("window_steps") is None
    assert of_service["decode"] == of_file["decode"]
    assert experts("show", f"{service}/elsewhere").exit_code == 2


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('{"format": "fourlane.expert_load", "version": 1, "phases": {}}', "no expert has got a token yet"),
        ("<html>", "expected expert loads as JSON, got b'<html>'"),
        ('{"format": "fourlane.expert_load", "version": 9, "phases": {"decode": {}}}', "version: expected 1, got 9"),
    ],
)
def test_a_service_that_answers_something_else_is_named(service: str, answer: Path, body: str, complaint: str) -> None:
    answer.write_text(body)
    result = experts("show", service)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert service in result.stderr


def test_a_service_that_does_not_answer_is_named() -> None:
    result = experts("show", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "http://127.0.0.1:9/experts/load: expected a running service" in result.output


# place ------------------------------------------------------------------------------------------------


def test_a_placement_is_better_than_linear_and_told_exactly(loads: Path, tmp_path: Path) -> None:
    file = tmp_path / "placement.npz"
    words = ("place", loads, "--phase", "decode", "--ranks", 8, "--redundant", 8, "-o", file, "--json")
    figures = json.loads(done(*words).stdout)
    load_LE = read_loads(loads)["decode"].load_WLE.sum(axis=0)
    assert figures["layers"]["placed"] == pytest.approx(read(file).balance(load_LE))
    assert figures["layers"]["linear"] == pytest.approx(
        linear_placement(layers=4, experts=32, ranks=8).balance(load_LE)
    )
    balance = figures["balance"]
    assert balance["bound"]["mean"] <= balance["placed"]["mean"] < balance["linear"]["mean"]
    assert figures["bytes_a_rank"] == 5 * 4 * 44_000_000


def test_a_repair_moves_no_more_than_allowed(loads: Path, placement: Path, tmp_path: Path) -> None:
    file = tmp_path / "mended.json"
    words = ("place", loads, "--phase", "prefill", "--ranks", 8, "--redundant", 8, "--previous", placement)
    figures = json.loads(done(*words, "--moves", 4, "-o", file, "--json").stdout)
    assert figures["moves"] == read(file).moves_from(read(placement)).tolist()
    assert max(figures["moves"]) <= 4
    assert figures["moved_bytes"] == sum(figures["moves"]) * 44_000_000
    assert figures["balance"]["placed"]["mean"] <= figures["balance"]["before"]["mean"]


def test_groups_in_nodes_are_told_with_the_traffic_they_save(loads: Path) -> None:
    words = ("place", loads, "--phase", "decode", "--ranks", 8, "--redundant", 8, "--nodes", 4)
    in_nodes = json.loads(done(*words, "--groups", 8, "--top-groups", 2, "--json").stdout)
    anywhere = json.loads(done(*words, "--json").stdout)
    assert in_nodes["nodes_reached"]["placed"] < in_nodes["nodes_reached"]["anywhere"]
    assert anywhere["nodes_reached"] is None
    assert "of that traffic saved" in done(*words, "--groups", 8).output


def test_redundancy_by_layer_keeps_to_the_budget(loads: Path) -> None:
    words = ("place", loads, "--phase", "decode", "--ranks", 8, "--redundant", 8, "--layer-budget", "--json")
    slots = json.loads(done(*words).stdout)["slots_a_rank"]
    assert sum(slots) * 8 <= 4 * 40
    assert min(slots) >= 4


def test_a_balance_above_the_limit_fails_the_check(loads: Path, tmp_path: Path) -> None:
    words = ("place", loads, "--phase", "decode", "--ranks", 8, "--redundant", 8, "-o", tmp_path / "placement.json")
    assert experts(*words, "--max-balance", 1.5, "--plot", tmp_path / "placement.svg").exit_code == 0
    assert "Load of each rank over the mean" in (tmp_path / "placement.svg").read_text()
    result = experts(*words, "--max-balance", 1.0)
    assert result.exit_code == 1
    assert "expected max/mean of at most 1 in every layer, got more in" in result.output
    assert (tmp_path / "placement.json").exists()


# split ------------------------------------------------------------------------------------------------


def test_a_split_batch_is_told_rank_by_rank(counts: Path, placement: Path, tmp_path: Path) -> None:
    file, quotas = tmp_path / "one.npz", tmp_path / "quotas.npz"
    count_GE = read_counts(counts)[0]
    write_counts(file, count_GE)
    words = ("split", file, "--placement", placement, "--layer", 1)
    assert "max / mean" in done(*words).output
    [figures] = json.loads(done(*words, "--json", "-o", quotas).stdout)["batches"]
    assert sum(figures["tokens_after"]) == sum(figures["tokens_before"]) == count_GE.sum()
    assert figures["balance_bound"] <= figures["balance_after"] <= figures["balance_before"]
    quota_BGP = np.load(quotas)["quota_BGP"]
    assert quota_BGP[0].sum(axis=0).reshape(8, -1).sum(axis=1).tolist() == figures["tokens_after"]


def test_several_batches_are_split_and_drawn_side_by_side(counts: Path, placement: Path, tmp_path: Path) -> None:
    words = ("split", counts, "--placement", placement, "--layer", 1)
    globally, locally = (json.loads(done(*words, *how, "--json").stdout)["batches"] for how in ((), ("--local",)))
    assert all(one["balance_after"] <= other["balance_after"] for one, other in zip(globally, locally, strict=True))
    assert done(*words, "--plot", tmp_path / "split.svg").output.count("\n") >= 4
    assert "batch 1" in (tmp_path / "split.svg").read_text()


def test_a_split_above_the_limit_fails_the_check(counts: Path, tmp_path: Path) -> None:
    flat = linear_placement(layers=4, experts=32, ranks=8)  # no replicas, nothing to split over
    write_placement(tmp_path / "flat.json", flat.slot_of_LP, experts=32, ranks=8)
    words = ("split", counts, "--placement", tmp_path / "flat.json", "--layer", 1)
    assert experts(*words, "--max-balance", 4.0).exit_code == 0
    result = experts(*words, "--max-balance", 1.0)
    assert result.exit_code == 1
    assert "expected max/mean of at most 1, got more in 2: batch " in result.output


# advise -----------------------------------------------------------------------------------------------


def test_advice_says_what_to_do_and_draws_it(loads: Path, tmp_path: Path) -> None:
    words = ("advise", loads, "--phase", "decode", "--ranks", 8, "--top-k", 4, "--plot", tmp_path / "advice.svg")
    shown = done(*words)
    assert "- Worth it, with R=" in shown.output
    assert "Layers of 4 that hold a target" in (tmp_path / "advice.svg").read_text()
    figures = json.loads(done(*words, "--json").stdout)
    chosen = next(each for each in figures["options"] if each["redundant"] == figures["redundant"])
    assert figures["worthwhile"]
    assert chosen["split"]["mean"] <= chosen["equal"]["mean"] < figures["linear_batches"]["mean"]
    assert figures["verdict"][0].startswith("Worth it")


def test_advice_keeps_to_the_memory_there_is(loads: Path) -> None:
    words = ("advise", loads, "--phase", "decode", "--ranks", 8, "--top-k", 4, "--json")
    limited = json.loads(done(*words, "--memory", "0B").stdout)
    assert limited["redundant"] == 0


# bench ------------------------------------------------------------------------------------------------


def test_a_bench_compares_placements_and_choices_in_one_run(loads: Path, placement: Path, tmp_path: Path) -> None:
    words = ("bench", loads, "--phase", "decode", "--ranks", 8, "--redundant", 8, "--top-k", 4)
    more = ("--groups", 4, "--nodes", 2, "--placement", placement, "--plot", tmp_path / "bench.svg")
    found = json.loads(done(*words, *more, "--json").stdout)["placements"]
    by_name = {each["placement"]: each for each in found}
    assert next(iter(by_name)) == "linear"
    assert {"by groups in nodes", "placed", "repaired, 8 moves", "placed to be split", placement.name} <= set(by_name)
    assert by_name["linear"]["ratio"] == 1.0
    assert by_name["placed to be split"]["ratio"] < 1.0
    placed = by_name["placed"]["batches"]
    assert placed["all counts"]["mean"] <= min(choice["mean"] for choice in placed.values())
    assert (tmp_path / "bench.svg").exists()


def test_a_bench_without_a_file_draws_its_loads() -> None:
    small = ("--layers", 2, "--experts", 32, "--top-k", 4, "--ranks", 8, "--batches", 1)
    shown = done("bench", "--model", "zipf", *small)
    assert "drawn, mixed: 2 layers of 32 experts on 8 ranks, R=8" in shown.output
    assert "choosing replicas for a batch takes" in shown.output


# export -----------------------------------------------------------------------------------------------


def test_an_export_holds_the_placement_in_every_form(placement: Path, tmp_path: Path) -> None:
    made = read(placement)
    for engine, name in (("sglang", "sglang.json"), ("vllm", "vllm.json")):
        done("export", placement, "--engine", engine, "-o", tmp_path / name)
        held = json.loads((tmp_path / name).read_text())
        assert held["physical_to_logical_map"] == made.slot_of_LP.tolist()
    assert json.loads((tmp_path / "sglang.json").read_text()).keys() == {"physical_to_logical_map"}
    for engine in ("json", "npz"):
        done("export", placement, "--engine", engine, "-o", tmp_path / f"copy.{engine}")
        assert (read(tmp_path / f"copy.{engine}").slot_of_LP == made.slot_of_LP).all()


def test_sglangs_dense_layers_get_rows_of_their_own(placement: Path, tmp_path: Path) -> None:
    done("export", placement, "--engine", "sglang", "--dense-layers", 3, "-o", tmp_path / "sglang.json")
    assert len(json.loads((tmp_path / "sglang.json").read_text())["physical_to_logical_map"]) == 3 + 4


# wrong use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("place", "{loads}", "--ranks", "8"), "--phase: {loads} has loads of prefill, decode, which differ"),
        (("advise", "{loads}", "--ranks", "8"), "choose with --phase prefill or --phase decode"),
        (("show", "{loads}", "--phase", "mixed"), "--phase: expected one of {loads}'s phases (prefill, decode)"),
        (("show", "{loads}", "--redundant", "8"), "--redundant: expected with --ranks"),
        (("show", "absent.npz"), "absent.npz: expected a readable file"),
        (("place", "absent.npz", "--ranks", "8"), "absent.npz: expected a readable file"),
        (("place", "{loads}", "--phase", "decode", "--ranks", "8", "--redundant", "3"), "such as 0 or 8, got 3"),
        (("place", "{loads}", "--phase", "decode", "--ranks", "8", "--slots", "41"), "slots: expected"),
        (("place", "{loads}", "--phase", "decode", "--ranks", "8", "--slots", "24"), "slots"),
        (
            ("place", "{loads}", "--phase", "decode", "--ranks", "8", "--slots", "40", "--redundant", "8"),
            "--slots: expected --slots or --redundant, got both",
        ),
        (("place", "{loads}", "--phase", "decode", "--ranks", "8", "--cost", "bytes"), "--cost: expected tokens"),
        (("place", "{loads}", "--phase", "decode", "--ranks", "8", "--cost", "tokens=x"), "--cost: expected tokens"),
        (("place", "{loads}", "--phase", "decode", "--ranks", "8", "--expert-bytes", "44"), "--expert-bytes: expected"),
        (("place", "{loads}", "--phase", "decode", "--ranks", "8", "--previous", "{loads}"), "{loads}: expected"),
        (("split", "{counts}", "--placement", "{placement}", "--layer", "9"), "layer: expected 0..3, got 9"),
        (("split", "{counts}", "--placement", "{counts}"), "{counts}: expected"),
        (("split", "{placement}", "--placement", "{placement}"), "{placement}: expected one array"),
        (("split", "{counts}", "--placement", "{placement}", "-o", "quotas.txt"), "ends in .npz or .json"),
        (("advise", "{loads}", "--phase", "decode", "--ranks", "1"), "ranks: expected at least 2"),
        (("advise", "{loads}", "--phase", "decode", "--ranks", "8", "--redundant", "3"), "redundant: expected as many"),
        (("advise", "{loads}", "--phase", "decode", "--ranks", "8", "--memory", "6"), "--memory: expected a size"),
        (("bench", "{loads}", "--phase", "decode", "--ranks", "4", "--placement", "{placement}"), "on 4 ranks, got"),
        (("generate", "--top-k", "40", "--experts", "32", "-o", "x.npz"), "--top-k: expected at most 32"),
        (("generate", "--ranks", "8", "-o", "x.npz"), "--ranks: expected with --batches"),
        (("generate", "--batches", "8", "-o", "x.npz"), "--ranks: expected with --batches"),
        (("generate", "--layers", "1", "-o", "x.csv"), "x.csv: expected"),
        (("export", "{placement}", "--engine", "npz", "-o", "x.json"), "ends in .npz with --engine npz"),
        (("export", "{placement}", "--engine", "vllm", "--dense-layers", "3", "-o", "x.json"), "--dense-layers: exp"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(
    words: tuple[str, ...], complaint: str, loads: Path, counts: Path, placement: Path
) -> None:
    named = {"loads": loads, "counts": counts, "placement": placement}
    result = experts(*(word.format(**named) for word in words))
    assert result.exit_code == 2, result.output
    assert complaint.format(**named) in result.stderr
    assert "Traceback" not in result.output


def test_a_placement_with_empty_slots_cannot_go_to_engines_that_know_none(tmp_path: Path) -> None:
    made = linear_placement(layers=1, experts=6, ranks=4)
    write_placement(tmp_path / "placement.json", made.slot_of_LP, experts=6, ranks=4)
    for engine in ("sglang", "vllm"):
        result = experts("export", tmp_path / "placement.json", "--engine", engine, "-o", tmp_path / "x.json")
        assert result.exit_code == 2
        assert "empty slot" in result.output


def test_every_slot_is_used_on_request_so_that_engines_can_take_the_placement(tmp_path: Path) -> None:
    one_replica_is_best = LoadArrays(np.array([[[1.0, 8, 5, 3]]]))
    write_loads(tmp_path / "loads.json", {"decode": one_replica_is_best})
    made = tmp_path / "placement.json"
    words = ("place", tmp_path / "loads.json", "--ranks", 2, "--slots", 6, "--no-split-aware", "-o", made)
    done(*words)
    refused = experts("export", made, "--engine", "vllm", "-o", tmp_path / "map.json")
    assert refused.exit_code == 2
    assert "--every-slot" in refused.output
    done(*words, "--every-slot")
    done("export", made, "--engine", "vllm", "-o", tmp_path / "map.json")
    assert -1 not in json.loads((tmp_path / "map.json").read_text())["physical_to_logical_map"][0]


@pytest.mark.parametrize("command", ["advise", "bench", "export", "generate", "place", "show", "split"])
def test_help_has_examples_that_call_the_command(command: str) -> None:
    shown = done(command, "--help").output
    assert shown.count(f"fourlane experts {command} ") >= 3
