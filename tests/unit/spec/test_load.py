"""Loading deployments: defaults, overrides, and every fault at once."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import pytest

from fourlane.errors import SpecError
from fourlane.spec.deployment import Balance, Deployment, Pool
from fourlane.spec.load import cautions, load, load_deployment, render
from fourlane.units import Duration, Rate, Size

if TYPE_CHECKING:
    from pathlib import Path

CATALOG = resources.files("fourlane.spec") / "catalog" / "deployments"
SHIPPED = ["balanced.toml", "gpu_node.toml", "laptop.toml", "two_by_two.toml", "unified.toml"]


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A spec with every kind of field that a deployment lacks."""

    name: str
    rate: Rate
    weight: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    priorities: list[Annotated[int, msgspec.Meta(ge=0, le=7)]] = []
    marks: dict[str, int] = {}
    kind: Literal["electrical", "optical"] = "optical"
    length: int | str = 0


def write(folder: Path, text: str) -> Path:
    path = folder / "deployment.toml"
    path.write_text(text)
    return path


def faults_of(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_deployment(write(folder, text), overrides=overrides)
    return list(caught.value.faults)


def test_without_a_file_there_is_one_prefill_and_one_decode_rank() -> None:
    assert load_deployment() == Deployment(prefill=Pool(), decode=Pool())


def test_an_override_without_a_file_keeps_the_other_pool() -> None:
    assert load_deployment(overrides=["prefill.ranks=2"]) == Deployment(prefill=Pool(ranks=2), decode=Pool())
    assert load_deployment(overrides=["unified.ranks=2"]) == Deployment(unified=Pool(ranks=2))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_deployment_loads(name: str) -> None:
    with resources.as_file(CATALOG / name) as path:
        deployment = load_deployment(path)
    assert deployment.pools()
    assert cautions(deployment) == []


def test_every_shipped_deployment_is_tested() -> None:
    assert sorted(entry.name for entry in CATALOG.iterdir()) == SHIPPED


def test_laptop_is_what_runs_without_a_file() -> None:
    with resources.as_file(CATALOG / "laptop.toml") as path:
        assert load_deployment(path) == load_deployment()


def test_quantities_are_read_with_their_units(tmp_path: Path) -> None:
    path = write(tmp_path, '[unified]\nkv_memory = "1GiB"\n[kv_transfer]\ntimeout = "5s"')
    deployment = load_deployment(path)
    assert deployment.unified == Pool(kv_memory=Size(1 << 30))
    assert deployment.kv_transfer.timeout == Duration.parse("5s")


def test_all_faults_are_reported_at_once_with_their_places(tmp_path: Path) -> None:
    text = """
    [model]
    weight = "bfloat16"
    [gateway]
    port = "http"
    max_body = 8
    request_timeout = "5 parsecs"
    [prefill]
    ranks = 4
    prefix_cache = 1
    [decode]
    ranks = 1.5
    launch = "Local"
    [kv_cache]
    block_size = 24
    [kv_transfer]
    ports = "80"
    """
    assert faults_of(tmp_path, text) == [
        'deployment.toml: model.weight: unknown key (did you mean "weights"?); known: path, name, weights, max_length',
        'deployment.toml: gateway.port: expected a whole number, got "http"',
        (
            'deployment.toml: gateway.max_body: expected a size such as "64KiB", got 8 '
            '(a bare number has no unit; write "8KiB", "8MiB" or "8GB")'
        ),
        (
            'deployment.toml: gateway.request_timeout: expected a duration such as "4us", got "5 parsecs" '
            "(units: ps, ns, us, ms, s, min, h)"
        ),
        "deployment.toml: prefill.prefix_cache: expected true or false, got 1",
        "deployment.toml: decode.ranks: expected a whole number, got 1.5",
        'deployment.toml: decode.launch: expected "external" or "local", got "Local" (did you mean "local"?)',
        "deployment.toml: kv_cache.block_size: expected a power of two from 1 to 256, got 24",
        'deployment.toml: kv_transfer.ports: expected a port range such as "7000-7031" within 1-65535, got "80"',
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "deployment.toml: expected tables [prefill] and [decode], or [unified], got none of them"),
        (
            "[prefill]",
            "deployment.toml: decode: expected a table [decode] to go with [prefill], but it is missing",
        ),
        (
            "[decode]\n[unified]",
            (
                "deployment.toml: unified: expected either [prefill] and [decode] or [unified], "
                "got [decode], [unified]; remove one"
            ),
        ),
        ("unified = 3", "deployment.toml: unified: expected a table, got 3"),
        (
            "[unified]\nranks = 6\nexpert_parallel = 4",
            "deployment.toml: unified.expert_parallel: expected a divisor of ranks = 6 (1, 2, 3, 6), got 4",
        ),
        ("[unified]\nranks = 0", "deployment.toml: unified.ranks: expected at least 1, got 0"),
        ("[unified]\nchunk_tokens = 0", "deployment.toml: unified.chunk_tokens: expected at least 1, got 0"),
        ('[unified]\nkv_memory = "0B"', "deployment.toml: unified.kv_memory: expected more than nothing, got 0B"),
        (
            '[unified]\ndevice = "gpu"',
            'deployment.toml: unified.device: expected "cpu", "cuda" or "cuda:N", got "gpu"',
        ),
        (
            "[unified]\n[gateway]\nport = 70000",
            "deployment.toml: gateway.port: expected a port from 0 (any free one) to 65535, got 70000",
        ),
        (
            '[unified]\n[gateway]\nhost = ""',
            'deployment.toml: gateway.host: expected an address such as "127.0.0.1" or "0.0.0.0", got ""',
        ),
        (
            '[unified]\n[gateway]\napi_key = ""',
            'deployment.toml: gateway.api_key: expected a key, got ""; leave the line out for a service without one',
        ),
        (
            '[unified]\n[gateway]\ncontrol = "10.0.0.1:7600"',
            'deployment.toml: gateway.control: expected an address such as "tcp://10.0.0.1:7600", got "10.0.0.1:7600"',
        ),
        (
            '[unified]\n[exchange]\naddress = "eth0"',
            'deployment.toml: exchange.address: expected an IP address of this host such as "127.0.0.1", got "eth0"',
        ),
        (
            '[unified]\n[exchange]\nimplementation = "shared_memory"\nhierarchical = "always"',
            (
                'deployment.toml: exchange.hierarchical: "always" is for "tcp" and "torch_all_to_all", got '
                '"shared_memory" as exchange.implementation; use "auto"'
            ),
        ),
        (
            '[unified]\ndevice = "cuda"\n[exchange]\nimplementation = "shared_memory"',
            'deployment.toml: exchange.implementation: "shared_memory" is for CPUs, got [unified] on cuda; use "auto"',
        ),
        (
            '[prefill]\n[decode]\nranks = 3\n[kv_transfer]\nports = "7000-7001"',
            'deployment.toml: kv_transfer.ports: expected a port for each of 3 decode ranks, got 2 in "7000-7001"',
        ),
        (
            "[unified]\n[kv_cache]\nblock_size = 512",
            "deployment.toml: kv_cache.block_size: expected a power of two from 1 to 256, got 512",
        ),
        (
            '[unified]\n[kv_transfer]\nmore_addresses = ["10.0.0.1", "eth1"]',
            (
                "deployment.toml: kv_transfer.more_addresses[1]: "
                'expected an IP address of this host such as "127.0.0.1", got "eth1"'
            ),
        ),
        (
            '[unified]\n[kv_transfer]\naddress = "10.0.0.1"\nmore_addresses = ["10.0.0.1"]',
            (
                "deployment.toml: kv_transfer.more_addresses: expected addresses of different interfaces, "
                'got "10.0.0.1" twice'
            ),
        ),
        (
            "[unified]\n[kv_transfer]\nstreams = 0",
            "deployment.toml: kv_transfer.streams: expected 1 to 64 connections, got 0",
        ),
        (
            '[unified]\n[kv_transfer]\ndevices = ["mlx5_0:1", "mlx5 1"]',
            (
                'deployment.toml: kv_transfer.devices[1]: expected a device such as "mlx5_0:1" '
                'or an interface such as "eth1", got "mlx5 1"'
            ),
        ),
        (
            '[unified]\n[kv_transfer]\ntransport = "nixl"\ngid_index = 256',
            "deployment.toml: kv_transfer.gid_index: expected 0 to 255, got 256",
        ),
        (
            '[unified]\n[kv_transfer]\ntransport = "tcp"\ndevices = ["mlx5_0"]',
            (
                'deployment.toml: kv_transfer.devices: expected none with transport "tcp", '
                "which knows addresses only; remove the line"
            ),
        ),
        ("[unified]\n[model]\nmax_length = 1", "deployment.toml: model.max_length: expected at least 2, got 1"),
        (
            "[unified]\n[balance]\nredundant_experts = -1",
            "deployment.toml: balance.redundant_experts: expected at least 0, got -1",
        ),
        ("[unified]\n[balance]\nmoves = 0", "deployment.toml: balance.moves: expected at least 1, got 0"),
        (
            "[unified]\n[balance]\ninterval_steps = 50",
            "deployment.toml: balance.window_steps: expected at most interval_steps = 50, got 100",
        ),
        ("[unified]\n[balance]\nmin_gain = -0.1", "deployment.toml: balance.min_gain: expected at least 0, got -0.1"),
        ("[unified]\n[overlap]\nmin_tokens = 1", "deployment.toml: overlap.min_tokens: expected at least 2, got 1"),
        ("[unified]\n[overlap]\nmin_gain = -0.5", "deployment.toml: overlap.min_gain: expected at least 0, got -0.5"),
        (
            "[unified]\n[balance]\ncost_tokens = 0",
            "deployment.toml: balance.cost_tokens: expected cost_tokens or cost_activated above 0, got 0 for both",
        ),
        (
            '[unified]\n[balance]\nmigration_timeout = "0s"',
            "deployment.toml: balance.migration_timeout: expected more than nothing, got 0s",
        ),
        (
            '[unified]\n[balance]\ninitial = ""',
            (
                'deployment.toml: balance.initial: expected a placement file, got ""; '
                "leave the line out to begin with experts in order"
            ),
        ),
    ],
)
def test_a_broken_rule_is_named(tmp_path: Path, text: str, fault: str) -> None:
    assert faults_of(tmp_path, text) == [fault]


def test_a_fault_does_not_bring_others_that_only_follow_from_it(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, '[unified]\nranks = "two"\nexpert_parallel = 2')
    assert "unified.ranks" in fault


def test_an_override_is_checked_by_the_same_schema_and_named_as_such(tmp_path: Path) -> None:
    found = faults_of(tmp_path, "[unified]", "unified.ranks=two", "gateway.colour=red")
    assert found[0].startswith("--set: gateway.colour: unknown key; known: host, port, ")
    assert found[1] == '--set: unified.ranks: expected a whole number, got "two"'


def test_an_override_sets_changes_and_takes_away(tmp_path: Path) -> None:
    path = write(tmp_path, '[unified]\nranks = 2\n[gateway]\napi_key = "secret"')
    deployment = load_deployment(
        path,
        overrides=["unified.ranks=4", "gateway.api_key=", "gateway.host = 0.0.0.0", "unified.kv_memory=64MiB"],
    )
    assert deployment.unified == Pool(ranks=4, kv_memory=Size.parse("64MiB"))
    assert deployment.gateway.api_key is None
    assert deployment.gateway.host == "0.0.0.0"


@pytest.mark.parametrize("override", ["unified.ranks", "=3", "unified..ranks=3", ""])
def test_an_override_without_path_or_value_is_refused(override: str) -> None:
    with pytest.raises(SpecError, match="expected path=value"):
        load_deployment(overrides=[override])


def test_an_override_cannot_reach_into_a_value(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"gateway\.port is 80, not a table, and has no number"):
        load_deployment(write(tmp_path, "[gateway]\nport = 80"), overrides=["gateway.port.number=3"])


def test_an_override_cannot_smuggle_in_a_second_line() -> None:
    deployment = load_deployment(overrides=["model.name=1\n[gateway]\nport=1"])
    assert deployment.gateway.port == 8000
    assert deployment.model.name == "1\n[gateway]\nport=1"


def test_a_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.toml: expected a readable TOML file: No such file"):
        load_deployment(tmp_path / "absent.toml")
    with pytest.raises(SpecError, match=r"deployment\.toml: not valid TOML: .*line 2"):
        load_deployment(write(tmp_path, "[unified]\nranks = = 2"))
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(SpecError, match=r"latin\.toml: not valid TOML"):
        load_deployment(tmp_path / "latin.toml")


def test_an_open_service_without_a_key_is_pointed_out() -> None:
    (caution,) = cautions(load_deployment(overrides=["gateway.host=0.0.0.0"]))
    assert "gateway.api_key is not set" in caution
    assert cautions(load_deployment(overrides=["gateway.host=0.0.0.0", "gateway.api_key=k"])) == []
    assert cautions(load_deployment(overrides=["gateway.host=localhost"])) == []


def test_external_decode_ranks_behind_a_loopback_address_are_pointed_out() -> None:
    (caution,) = cautions(load_deployment(overrides=["decode.launch=external"]))
    assert caution.startswith("kv_transfer.address: a loopback address")


def test_balancing_ranks_that_hold_all_experts_is_pointed_out() -> None:
    (caution,) = cautions(load_deployment(overrides=["balance.moves=8"]))
    assert caution.startswith("balance: every rank holds all experts")
    assert cautions(load_deployment(overrides=["balance.moves=8", "decode.ranks=2"])) == []


def test_two_streams_always_where_nothing_travels_are_pointed_out() -> None:
    (caution,) = cautions(load_deployment(overrides=["overlap.mode=always"]))
    assert caution.startswith("overlap.mode: every rank holds all experts")
    assert cautions(load_deployment(overrides=["overlap.mode=always", "decode.ranks=2"])) == []


def test_experts_are_not_balanced_unless_the_table_is_there(tmp_path: Path) -> None:
    assert load_deployment(write(tmp_path, "[unified]")).balance is None
    assert load_deployment(write(tmp_path, "[unified]\n[balance]")).balance == Balance()


def test_a_placement_file_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    found = load_deployment(write(tmp_path, '[unified]\n[balance]\ninitial = "placement.json"')).balance
    assert found is not None
    assert found.initial == str(tmp_path / "placement.json")
    elsewhere = load_deployment(overrides=["balance.initial=here.json"]).balance
    assert elsewhere is not None
    assert elsewhere.initial == "here.json"


def test_any_struct_of_the_known_kinds_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "link.toml"
    path.write_text(
        'name = "up"\nrate = "400Gbps"\nweight = 1\npriorities = [0, 7]\nmarks = {kv = 18}\nlength = "3m"\n'
    )
    link = load(path, Link)
    assert link == Link(name="up", rate=Rate(400 * 10**9), priorities=[0, 7], marks={"kv": 18}, length="3m")
    assert load(path, Link, ["weight=0.5"]).weight == 0.5


def test_faults_inside_arrays_tables_and_bounds_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "link.toml"
    path.write_text('weight = 2\npriorities = [1, 9]\nmarks = {kv = "x"}\nkind = 4\nlength = 1.5\nrate = "400GB"\n')
    with pytest.raises(SpecError) as caught:
        load(path, Link)
    assert list(caught.value.faults) == [
        "link.toml: name: expected text, but it is missing",
        'link.toml: rate: expected a rate such as "400Gbps", got "400GB" (did you mean "400Gbps" or "400GB/s"?)',
        "link.toml: weight: expected a number > 0 and <= 1, got 2",
        "link.toml: priorities[1]: expected a whole number >= 0 and <= 7, got 9",
        'link.toml: marks.kv: expected a whole number, got "x"',
        'link.toml: kind: expected "electrical" or "optical", got 4',
        "link.toml: length: expected a whole number or text, got 1.5",
    ]


def test_what_toml_cannot_say_is_not_written() -> None:
    class Odd(msgspec.Struct):
        name: str | None = "x"

    with pytest.raises(ValueError, match=r"Odd\.name"):
        render(Odd(name=None))
