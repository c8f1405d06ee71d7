"""Launch files of other engines: options exactly as their parsers know them, figures as the plan has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from launches import option, rendered, said, small_units, twin, written

from fourlane.errors import SpecError
from fourlane.planner.engines.flags import Flag, flag_faults, flag_table
from fourlane.planner.launch import Command, Option
from fourlane.spec.twin import Assumptions, Lanes, TwinPool, Workload

if TYPE_CHECKING:
    from typing import Any

RECORDED = Path(__file__).parents[3] / ".." / "shared" / "data" / "flags"


def recorded(engine: str) -> dict[str, dict[str, Any]]:
    table = flag_table(engine)
    path = RECORDED / f"{engine}-{table.version}.json"
    if not path.is_file():
        pytest.skip(f"no record of {engine}'s options at {path}")
    options = json.loads(path.read_text(encoding="utf-8"))["options"]
    return {name: entry for entry in options for name in entry["flags"]}


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_every_option_of_the_table_is_one_of_the_parser_with_the_same_choices(engine: str) -> None:
    parser = recorded(engine)
    for name, flag in flag_table(engine).programs["server"].items():
        assert name in parser, f"{engine} has no {name}"
        entry = parser[name]
        assert list(flag.choices) == [str(choice) for choice in entry["choices"] or []], name
        switch = entry["default"] in ("False", "True") or any(other.startswith("--no-") for other in entry["flags"])
        assert flag.switch == switch, name


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_every_word_that_scripts_run_is_an_option_of_the_parser_or_its_value(engine: str, tmp_path: Path) -> None:
    parser = recorded(engine)
    for number, wanted in enumerate((twin(), small_units(), twin(assumptions=Assumptions(mtp_tokens=1)))):
        folder = written(rendered(wanted, engine), tmp_path / str(number))
        for server in range(3):
            for words in said(folder, "start.sh", str(server)):
                names = [word for word in words if word.startswith("--")]
                assert names
                assert not [name for name in names if name not in parser]


def test_a_prefix_of_an_option_and_a_value_that_is_no_choice_are_faults() -> None:
    flags = {"--enable-dbo": Flag(switch=True), "--mode": Flag(choices=("a", "b"))}
    wrong = [Option.of("--enable-db", why=""), Option.of("--mode", "c", why=""), Option.of("--enable-dbo", 1, why="")]
    faults = flag_faults(Command(("x",), tuple(wrong)), flags)
    assert [fault.partition(":")[0] for fault in faults] == ["--enable-db", "--mode", "--enable-dbo"]
    assert flag_faults(Command(("x",), (Option.of("--mode", "b", why=""),)), flags) == []


def test_vllm_ranks_of_a_unit_are_numbered_over_its_servers(tmp_path: Path) -> None:
    folder = written(rendered(twin(), "vllm"), tmp_path)
    (words,) = said(folder, "start.sh", "6")
    assert words[:3] == ["vllm", "serve", "deepseek-ai/DeepSeek-V3"]
    assert option(words, "--data-parallel-size") == "32"
    assert option(words, "--data-parallel-size-local") == "8"
    assert option(words, "--data-parallel-start-rank") == "16"
    assert option(words, "--data-parallel-address") == "server0004"
    assert json.loads(option(words, "--eplb-config"))["num_redundant_experts"] == 32
    assert json.loads(option(words, "--kv-transfer-config")) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer",
    }
    assert option(words, "--all2all-backend") == "deepep_high_throughput"
    assert option(words, "--max-num-batched-tokens") == "8192"


def test_vllm_decodes_with_kernels_and_graphs_for_a_full_batch_drafts_included(tmp_path: Path) -> None:
    wanted = twin(assumptions=Assumptions(mtp_tokens=1))
    folder = written(rendered(wanted, "vllm", connector="mooncake"), tmp_path)
    (words,) = said(folder, "start.sh", "8")
    assert option(words, "--all2all-backend") == "deepep_low_latency"
    assert option(words, "--max-num-seqs") == "128"
    assert option(words, "--max-num-batched-tokens") == option(words, "--max-cudagraph-capture-size") == "256"
    assert json.loads(option(words, "--speculative-config")) == {"method": "mtp", "num_speculative_tokens": 1}
    kv = json.loads(option(words, "--kv-transfer-config"))
    assert kv["kv_connector_extra_config"] == {"mooncake_protocol": "rdma", "device_name": "mlx5_8,mlx5_9"}
    # 256 experts and 30 asked for on 64 ranks: 5 a rank
    assert json.loads(option(words, "--eplb-config"))["num_redundant_experts"] == 64


def test_sglang_counts_all_ranks_where_the_plan_counts_one(tmp_path: Path) -> None:
    folder = written(rendered(twin(), "sglang"), tmp_path)
    (prefill,), (decode,) = said(folder, "start.sh", "0"), said(folder, "start.sh", "9")
    assert option(prefill, "--tp-size") == option(prefill, "--attn-dp-size") == option(prefill, "--ep-size") == "32"
    assert option(prefill, "--chunked-prefill-size") == str(8192 * 32)
    assert option(decode, "--max-running-requests") == str(128 * 64)
    assert option(decode, "--cuda-graph-max-bs-decode") == "128"
    assert (option(decode, "--nnodes"), option(decode, "--node-rank")) == ("8", "1")
    assert option(decode, "--dist-init-addr") == "server0008:20000"
    assert option(decode, "--deepep-mode") == "low_latency"
    assert option(prefill, "--deepep-mode") == "normal"
    assert option(prefill, "--disaggregation-ib-device") == "mlx5_8,mlx5_9"
    assert "--enable-two-batch-overlap" in decode
    script = (folder / "decode.sh").read_text(encoding="utf-8")
    assert "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=128" in script


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_the_kv_cache_has_the_size_that_was_planned(engine: str, tmp_path: Path) -> None:
    made = rendered(twin(), engine)
    (words,) = said(written(made, tmp_path), "start.sh", "8")
    use = made.launch.memory["decode"]
    assert use is not None
    if engine == "vllm":
        assert option(words, "--kv-cache-memory-bytes") == str(use.kv)
    else:
        assert option(words, "--max-total-tokens") == str(use.kv_blocks * 64)


@pytest.mark.parametrize(("engine", "port"), [("sglang", 30000), ("vllm", 8000)])
def test_units_that_share_a_server_have_ports_and_gpus_of_their_own(engine: str, port: int, tmp_path: Path) -> None:
    folder = written(rendered(small_units(), engine), tmp_path)
    both = said(folder, "start.sh", "0")
    assert [option(words, "--port") for words in both] == [str(port), str(port + 1)]
    assert len(said(folder, "start.sh", "1")) == 1  # the third prefill unit
    assert len(said(folder, "start.sh", "2")) == 2  # decode
    start = (folder / "start.sh").read_text(encoding="utf-8")
    assert "CUDA_VISIBLE_DEVICES" in start


def test_two_streams_are_asked_for_where_planned(tmp_path: Path) -> None:
    folder = written(rendered(small_units(), "vllm"), tmp_path)
    (prefill, _), (decode, _) = said(folder, "start.sh", "0"), said(folder, "start.sh", "2")
    assert "--enable-dbo" not in prefill
    assert "--enable-dbo" in decode
    assert option(decode, "--dbo-decode-token-threshold") == "2"
    assert "--enable-eplb" not in decode  # in order, none redundant
    assert "--no-enable-prefix-caching" in decode


@pytest.mark.parametrize(("engine", "connector"), [("sglang", None), ("vllm", "nixl"), ("vllm", "mooncake")])
def test_the_router_is_told_every_endpoint(engine: str, connector: str | None, tmp_path: Path) -> None:
    folder = written(rendered(twin(), engine, connector=connector), tmp_path)
    (words,) = said(folder, "start-router.sh")
    flags = flag_table(engine).programs["router"]
    assert not [word for word in words if word.startswith("--") and word not in flags]
    prefill = [words[i + 1] for i, word in enumerate(words) if word == "--prefill"]
    decode = [words[i + 1] for i, word in enumerate(words) if word == "--decode"]
    if engine == "sglang":  # its first server answers for a unit
        assert prefill == ["http://server0000:30000", "http://server0004:30000"]
        assert decode == ["http://server0008:30000"]
    else:
        assert prefill == [f"http://server{n:04}:8000" for n in range(8)]
        assert decode == [f"http://server{n:04}:8000" for n in range(8, 16)]
        assert words.count("--bootstrap") == (8 if connector == "mooncake" else 0)


def test_lanes_reach_the_libraries_the_engine_uses(tmp_path: Path) -> None:
    made = rendered(twin(), "vllm")
    script = written(made, tmp_path) / "prefill.sh"
    text = script.read_text(encoding="utf-8")
    assert ". lanes/env/prefill/nvshmem.sh" in text  # DeepEP's first kernels
    assert ". lanes/env/prefill/ucx.sh" in text  # NIXL
    assert "mooncake.sh" not in text
    assert "NVSHMEM_IB_TRAFFIC_CLASS=184" in (tmp_path / "lanes/env/prefill/nvshmem.sh").read_text(encoding="utf-8")


def test_where_kv_shares_the_network_its_devices_are_that_networks(tmp_path: Path) -> None:
    folder = written(rendered(twin(lanes=Lanes(kv="hpn")), "sglang"), tmp_path)
    (words,) = said(folder, "start.sh", "0")
    assert option(words, "--disaggregation-ib-device") == ",".join(f"mlx5_{n}" for n in range(8))


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_benchmarks_are_in_words_their_tools_know(engine: str, tmp_path: Path) -> None:
    load = Workload(rate=7.5, input_len="lognormal:1000/8000", output_len="200", burstiness=2.0)
    folder = written(rendered(twin(workload=load), engine), tmp_path)
    place = {"URL": "http://here:9000", "MODEL": "m"}
    (own,) = said(folder, "benchmark.sh", **place)
    flags = flag_table(engine).programs["benchmark"]
    assert not [word for word in own if word.startswith("--") and word not in flags]
    assert option(own, "--request-rate") == "7.5"
    assert own[own.index("--goodput") + 1 :][:2] == ["ttft:1000", "tpot:50"]
    assert 1400 < int(option(own, "--random-input-len")) < 1600  # the mean lies above the median
    if engine == "sglang":  # whose router takes text alone, and fourlane sends token ids
        assert not (folder / "benchmark-fourlane.sh").exists()
        return
    assert option(own, "--burstiness") == "0.25"  # a shape, 1 / 2^2
    (ours,) = said(folder, "benchmark-fourlane.sh", **place)
    assert option(ours, "--input-len") == "lognormal:1000/8000"
    assert option(ours, "--burstiness") == "2"


def test_a_trace_is_sent_with_its_means_where_a_tool_cannot_play_it(tmp_path: Path) -> None:
    trace = tmp_path / "two.jsonl"
    rows = [
        {"timestamp": t, "input_length": n, "output_length": 10, "hash_ids": []} for t, n in ((0, 100), (4000, 300))
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = written(rendered(twin(workload=Workload(trace=str(trace), speed=2.0)), "vllm"), tmp_path / "out")
    place = {"URL": "http://here:9000", "MODEL": "m"}
    (own,) = said(folder, "benchmark.sh", **place)
    assert [option(own, name) for name in ("--random-input-len", "--num-prompts", "--request-rate")] == [
        "200",
        "2",
        "1",
    ]
    (ours,) = said(folder, "benchmark-fourlane.sh", **place)
    assert (option(ours, "--trace"), option(ours, "--speed")) == (str(trace), "2")


def test_the_router_of_sglang_is_told_no_policy_that_it_refuses(tmp_path: Path) -> None:
    (words,) = said(written(rendered(twin(), "sglang"), tmp_path / "one"), "start-router.sh")
    assert option(words, "--decode-policy") == "round_robin"  # power_of_two needs two
    (words,) = said(written(rendered(small_units(), "sglang"), tmp_path / "two"), "start-router.sh")
    assert option(words, "--decode-policy") == "power_of_two"


def test_what_an_engine_cannot_do_is_refused_with_what_to_change() -> None:
    with pytest.raises(SpecError, match=r"prefill.chunk_tokens: SGLang .* got 1000; use 960"):
        rendered(twin(prefill=TwinPool(units=1, ranks=32, chunk_tokens=1000)), "sglang")
    with pytest.raises(SpecError, match=r'assumptions.kv: vLLM .* got "fp32"'):
        rendered(twin(assumptions=Assumptions(kv="fp32")), "vllm")
    with pytest.raises(SpecError, match="has none; expected"):
        rendered(twin(cluster="lab", prefill=TwinPool(ranks=1), decode=TwinPool(ranks=1)), "vllm")
    with pytest.raises(SpecError, match=r"prefill.ranks: 9 ranks do not spread evenly over 2 servers .* use 8 or 16"):
        rendered(twin(prefill=TwinPool(units=1, ranks=9)), "vllm")
    with pytest.raises(SpecError, match=r"units take 4008 servers.* has 1280"):
        rendered(twin(prefill=TwinPool(units=1000, ranks=32)), "vllm")


def test_what_another_engine_does_otherwise_is_said() -> None:
    notes = " ".join(rendered(twin(), "sglang").notes)
    assert "shares tokens out blindly" in notes
    assert "fourlane" in " ".join(rendered(twin(), "sglang", balancer="fourlane").notes)
