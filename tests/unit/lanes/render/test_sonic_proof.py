"""Errors of meaning in config_db, planted one by one: each is found under its own name."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sonic_yang import YangError, sonic_yang

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.ports import switches
from fourlane.lanes.render.sonic import render_sonic
from fourlane.lanes.render.sonic_proof import CHECKS, prove_config_db
from fourlane.lanes.render.sonic_reading import config_db_differences, read_config_db
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.lanes.plan import LanePlan
    from fourlane.lanes.ports import Switch

Tables = dict[str, dict[str, dict[str, Any]]]


@cache
def case() -> tuple[LanePlan, Switch, Tables]:
    """Return a plan with two lossless classes and a capped one on one network, a leaf, and its tables."""
    overrides = ("hpn.leaf.os=sonic", "hpn.leaf.down_ports=2", "hpn.leaf.up_ports=1", "hpn.spine.down_ports=1")
    cluster = load_cluster("one-network", overrides=overrides)
    plan = default_plan(cluster)
    assert [kind.value for kind in plan.lossless_on("hpn")] == ["expert", "collective"]
    files = render_sonic(plan, cluster)
    tables = {**json.loads(files["hpn-leaf.ports.json"]), **json.loads(files["hpn-leaf.config_db.json"])}
    return plan, switches(cluster)[0], tables


def found_in(tables: Any) -> list[str]:
    plan, switch, _ = case()
    return [str(finding) for finding in prove_config_db(tables, chip=switch.model, plan=plan)]


class Planted(NamedTuple):
    """An error: the check that finds it, a part of the message, how it is made, and whether YANG lets it pass."""

    check: str
    message: str
    plant: Callable[[Tables], object]
    yang_passes: bool = True


def put(table: str, key: str, **fields: Any) -> Callable[[Tables], object]:
    return lambda tables: tables.setdefault(table, {}).setdefault(key, {}).update(fields)


def put_map(table: str, key: str, value: str) -> Callable[[Tables], object]:
    return put(table, "FOURLANE", **{key: value})


def drop(table: str, key: str, field: str | None = None) -> Callable[[Tables], object]:
    return lambda tables: tables[table].pop(key) if field is None else tables[table][key].pop(field)


def both(*plants: Callable[[Tables], object]) -> Callable[[Tables], object]:
    return lambda tables: [plant(tables) for plant in plants]


def trim_without_settings(tables: Tables) -> None:
    tables["BUFFER_PROFILE"]["fourlane_kv_queue"]["packet_discard_action"] = "trim"


EXPERT_GROUP = "fourlane_expert_pg_400g_5m"
STRICT = "fourlane_control_400g"
PLANTED = [
    Planted("queue-range", "queue 99 does not exist", put("QUEUE", "Ethernet0|99", scheduler="fourlane_bulk")),
    Planted("queue-range", "5 leads to queue 9", put_map("TC_TO_QUEUE_MAP", "5", "9")),
    Planted(
        "headroom",
        'group 5 has profile "fourlane_lossy_pg" without xoff',
        put("BUFFER_PG", "Ethernet0|5", profile="fourlane_lossy_pg"),
    ),
    Planted("headroom", "group 5 has no profile", drop("BUFFER_PG", "Ethernet0|5")),
    Planted(
        "group-overlap",
        '"3-4" and "3" claim the same',
        put("BUFFER_PG", "Ethernet0|3-4", profile="fourlane_collective_pg_400g_5m"),
    ),
    Planted(
        "queue-overlap", '"2-3" and "2" claim the same', put("QUEUE", "Ethernet0|2-3", scheduler="fourlane_kv_400g")
    ),
    Planted("dscp-mapped", "DSCP 46 lead nowhere", drop("DSCP_TO_TC_MAP", "FOURLANE", "46")),
    Planted("empty-entry", '"": "3" is half empty', put_map("DSCP_TO_TC_MAP", "", "3")),
    Planted("weights", "110 in all", put("SCHEDULER", "fourlane_expert", weight="70")),
    Planted("weights", "90 in all", put("SCHEDULER", "fourlane_expert", weight="50")),
    Planted(
        "scheduler-weight",
        "weight 0 is not from 1 to 100",
        put("SCHEDULER", "fourlane_bulk", weight="0"),
        yang_passes=False,
    ),
    Planted("pir-below-cir", "pir = 5 is below cir", put("SCHEDULER", STRICT, pir="5"), yang_passes=False),
    Planted("pir-without-cir", "but there is no cir", drop("SCHEDULER", STRICT, "cir"), yang_passes=False),
    Planted(
        "cbs-without-cir",
        "cbs is 9, but there is no cir",
        put("SCHEDULER", "fourlane_bulk", cbs="9"),
        yang_passes=False,
    ),
    Planted(
        "pbs-without-pir",
        "pbs is 9, but there is no pir",
        put("SCHEDULER", "fourlane_bulk", pbs="9"),
        yang_passes=False,
    ),
    Planted("pbs-below-cbs", "pbs = 8 is below cbs = 9", put("SCHEDULER", STRICT, cbs="9", pbs="8"), yang_passes=False),
    Planted(
        "pir-unit",
        "more than the 50000000000 bytes per second of the port",
        put("SCHEDULER", "fourlane_kv_400g", pir="200000000000"),
    ),
    Planted("scheduler-field", "priority: orchagent refuses", put("SCHEDULER", STRICT, priority="1")),
    Planted(
        "strict-cap",
        "is strict and has no pir",
        both(drop("SCHEDULER", STRICT, "pir"), drop("SCHEDULER", STRICT, "cir")),
    ),
    Planted("queue-scheduler", "queue 1, which has no scheduler", drop("QUEUE", "Ethernet0|1", "scheduler")),
    Planted("tc-queue", "traffic class 2 has code points, but no queue", drop("TC_TO_QUEUE_MAP", "FOURLANE", "2")),
    Planted(
        "tc-group",
        "traffic class 2 has code points, but no priority group",
        drop("TC_TO_PRIORITY_GROUP_MAP", "FOURLANE", "2"),
    ),
    Planted("port-map", "but no maps", drop("PORT_QOS_MAP", "Ethernet0")),
    Planted(
        "pfc-queue",
        "a pause of priority 5 stops queue 4, but its traffic class waits in queue 5",
        put_map("MAP_PFC_PRIORITY_TO_QUEUE", "5", "4"),
    ),
    Planted(
        "pfc-group",
        "priority 5 pauses for group 5, but its traffic class fills group 4",
        put_map("TC_TO_PRIORITY_GROUP_MAP", "5", "4"),
    ),
    Planted("pfc-unused", "no code point leads to traffic class 5", put_map("DSCP_TO_TC_MAP", "46", "0")),
    Planted(
        "lossy-in-lossless",
        "traffic class 2 is lossy, but shares priority group 5",
        put_map("TC_TO_PRIORITY_GROUP_MAP", "2", "5"),
    ),
    Planted(
        "headroom-unused", "group 5 has headroom, but no priority", put("PORT_QOS_MAP", "Ethernet0", pfc_enable="3")
    ),
    Planted("pool-side", "a pool of the egress side", put("BUFFER_PG", "Ethernet0|0", profile="fourlane_kv_queue")),
    Planted("pool-side", "a pool of the ingress side", put("BUFFER_QUEUE", "Ethernet0|2", profile="fourlane_lossy_pg")),
    Planted(
        "pool-side",
        "a pool of the ingress side",
        put("BUFFER_PORT_EGRESS_PROFILE_LIST", "Ethernet0", profile_list="fourlane_port_in"),
    ),
    Planted(
        "buffer", "in all, and Spectrum-4 has 158220288", put("BUFFER_POOL", "ingress_lossless_pool", size="158220288")
    ),
    Planted(
        "buffer", "158220289 bytes, and Spectrum-4 has", put("BUFFER_POOL", "egress_lossless_pool", size="158220289")
    ),
    Planted("xoff", "is more than its size of", put("BUFFER_PROFILE", EXPERT_GROUP, xoff="900000")),
    Planted(
        "alpha",
        "dynamic_th = -8, but Spectrum-4 takes -7 to 7",
        put("BUFFER_PROFILE", "fourlane_kv_queue", dynamic_th="-8"),
    ),
    Planted("threshold", "has dynamic_th and static_th", put("BUFFER_PROFILE", "fourlane_kv_queue", static_th="9000")),
    Planted(
        "profile-name",
        "buffermgrd gives such names to its own",
        put("BUFFER_PROFILE", "pg_lossless_400000_5m_profile", pool="ingress_lossless_pool", size="0", dynamic_th="0"),
    ),
    Planted("queue-buffer", "queue 2, which has no buffer profile", drop("BUFFER_QUEUE", "Ethernet0|2")),
    Planted(
        "lossless-egress",
        "its queue is limited on the way out",
        put("BUFFER_QUEUE", "Ethernet0|5", profile="fourlane_kv_queue"),
    ),
    Planted(
        "lossless-trim",
        "traffic class 5 pauses and trims",
        put("BUFFER_PROFILE", "fourlane_expert_queue", packet_discard_action="trim"),
    ),
    Planted("trimming", "fourlane_kv_queue trim, but SWITCH_TRIMMING lacks size", trim_without_settings),
    Planted(
        "group-overwritten",
        "buffermgrd writes the profiles of groups 3, 5",
        put("CABLE_LENGTH", "FOURLANE", Ethernet0="5m"),
    ),
    Planted("watchdog", "the port has no entry in PFC_WD", drop("PFC_WD", "Ethernet0")),
    Planted(
        "watchdog",
        "priority 5 pauses without a watchdog: not in pfcwd_sw_enable",
        put("PORT_QOS_MAP", "Ethernet0", pfcwd_sw_enable="3"),
    ),
    Planted(
        "watchdog-times", "50 ms is not from 100", put("PFC_WD", "Ethernet0", detection_time="50"), yang_passes=False
    ),
    Planted(
        "wred-order",
        "green_min_threshold = 9000000 is above",
        put("WRED_PROFILE", "fourlane_kv", green_min_threshold="9000000"),
        yang_passes=False,
    ),
    Planted(
        "wred-probability",
        "is above 100 percent",
        put("WRED_PROFILE", "fourlane_kv", green_drop_probability="101"),
        yang_passes=False,
    ),
    Planted(
        "wred-lossless",
        "drops early what it cannot mark (green), in a queue that pauses",
        put("WRED_PROFILE", "fourlane_collective", wred_green_enable="true"),
    ),
    Planted(
        "wred-control",
        "in the queue of control traffic",
        both(
            put("WRED_PROFILE", "fourlane_kv", wred_green_enable="true"),
            put("QUEUE", "Ethernet0|6", wred_profile="fourlane_kv"),
        ),
    ),
    Planted(
        "ecn-against-plan", "the queue of expert marks", put("QUEUE", "Ethernet0|5", wred_profile="fourlane_collective")
    ),
    Planted(
        "unknown-name",
        'there is no scheduler "nobody"',
        put("QUEUE", "Ethernet0|1", scheduler="nobody"),
        yang_passes=False,
    ),
    Planted(
        "unknown-name",
        'there is no buffer profile "nobody"',
        put("BUFFER_QUEUE", "Ethernet0|1", profile="nobody"),
        yang_passes=False,
    ),
    Planted(
        "inert-table",
        "upstream SONiC has no such table",
        put("ARS_PROFILE", "default", algorithm="ewma"),
        yang_passes=False,
    ),
    Planted("number", 'got "400Gbps"', put("SCHEDULER", STRICT, pir="400Gbps"), yang_passes=False),
    Planted("dscp-range", "184 is no DSCP", put_map("DSCP_TO_TC_MAP", "184", "5"), yang_passes=False),
    Planted(
        "form",
        "expected text, which SONiC keeps all values as, got 60",
        put("SCHEDULER", "fourlane_expert", weight=60),
        yang_passes=False,
    ),
]


def ids(planted: Planted) -> str:
    return f"{planted.check}: {planted.message}"


def test_what_is_rendered_is_proven() -> None:
    assert found_in(case()[2]) == []


@pytest.mark.parametrize("planted", PLANTED, ids=ids)
def test_an_error_of_meaning_is_found_under_its_own_name(planted: Planted) -> None:
    tables = copy.deepcopy(case()[2])
    planted.plant(tables)
    found = [text for text in found_in(tables) if text.startswith(f"{planted.check}: ")]
    assert any(planted.message in text for text in found), found_in(tables)


@pytest.mark.parametrize("planted", PLANTED, ids=ids)
def test_whether_the_yang_models_find_it_too_is_known(planted: Planted) -> None:
    tables = copy.deepcopy(case()[2])
    planted.plant(tables)
    if planted.yang_passes:
        sonic_yang().check(tables)
    else:
        with pytest.raises(YangError):
            sonic_yang().check(tables)


def test_every_check_has_an_error_that_it_finds() -> None:
    assert {planted.check for planted in PLANTED} == set(CHECKS)
    assert len({planted.check for planted in PLANTED if planted.yang_passes}) >= 14


def test_like_ports_are_told_of_together() -> None:
    tables = copy.deepcopy(case()[2])
    put_map("TC_TO_QUEUE_MAP", "2", "9")(tables)
    places = [text for text in found_in(tables) if text.startswith("queue-range: ")]
    assert len(places) == 2  # ports of two speeds
    assert "PORT_QOS_MAP|Ethernet0: tc_to_queue_map (and 1 port like it)" in places[0]


def test_adjacent_priorities_that_buffermgrd_joins_are_told_with_the_groups_they_hit() -> None:
    tables = copy.deepcopy(case()[2])
    both(
        put("PORT_QOS_MAP", "Ethernet0", pfc_enable="3,4,5", pfcwd_sw_enable="3,4,5"),
        put("CABLE_LENGTH", "FOURLANE", Ethernet0="40m"),
    )(tables)
    (found,) = (text for text in found_in(tables) if text.startswith("group-overwritten"))
    assert "groups 3-5 by its own table, over or beside yours (3, 5)" in found


def test_a_port_may_leave_its_lossless_groups_to_buffermgrd() -> None:
    tables = copy.deepcopy(case()[2])
    both(
        put("CABLE_LENGTH", "FOURLANE", Ethernet0="40m"),
        drop("BUFFER_PG", "Ethernet0|3"),
        drop("BUFFER_PG", "Ethernet0|5"),
    )(tables)
    assert found_in(tables) == []


def test_in_the_dynamic_model_cables_have_their_length_and_groups_may_be_left_to_it() -> None:
    tables = copy.deepcopy(case()[2])
    both(
        put("DEVICE_METADATA", "localhost", buffer_model="dynamic"),
        put("CABLE_LENGTH", "FOURLANE", Ethernet0="40m"),
        put("BUFFER_PG", "Ethernet0|5", profile="NULL"),
    )(tables)
    assert found_in(tables) == []


def test_a_device_is_proven_without_plan_or_chip() -> None:
    tables = copy.deepcopy(case()[2])
    assert prove_config_db(tables) == []
    put("QUEUE", "Ethernet0|8", scheduler="fourlane_bulk")(tables)
    assert [finding.check for finding in prove_config_db(tables)] == ["queue-range", "weights"]


def test_references_in_the_older_spelling_are_understood() -> None:
    tables = copy.deepcopy(case()[2])
    put("QUEUE", "Ethernet0|1", scheduler="[SCHEDULER|fourlane_bulk]", wred_profile="[WRED_PROFILE|fourlane_bulk]")(
        tables
    )
    assert found_in(tables) == []


def azure_device() -> Tables:
    """Return the tables SONiC comes with on a small device, ranges and all.

    Source: sonic-buildimage, src/sonic-config-engine/tests/sample_output/py3/buffers-dell6100.json and
        files/build_templates/qos_config.j2.
    """
    ports = ("Ethernet0", "Ethernet1")
    tcs = [str(tc) for tc in range(8)]
    marking = {
        f"{colour}_{end}_threshold": size
        for colour in ("green", "yellow", "red")
        for end, size in (("min", "1048576"), ("max", "2097152"))
    }
    spans = {"0-2": "egress_lossy_profile", "3-4": "egress_lossless_profile", "5-6": "egress_lossy_profile"}
    return {
        "PORT": {port: {"lanes": str(index), "speed": "40000"} for index, port in enumerate(ports)},
        "CABLE_LENGTH": {"AZURE": dict.fromkeys(ports, "300m")},
        "DSCP_TO_TC_MAP": {
            "AZURE": {str(dscp): {3: "3", 4: "4", 46: "5", 48: "6"}.get(dscp, "1") for dscp in range(64)}
        },
        "TC_TO_QUEUE_MAP": {"AZURE": dict(zip(tcs, tcs, strict=True))},
        "TC_TO_PRIORITY_GROUP_MAP": {"AZURE": {tc: tc if tc in "347" else "0" for tc in tcs}},
        "MAP_PFC_PRIORITY_TO_QUEUE": {"AZURE": dict(zip(tcs, tcs, strict=True))},
        "PORT_QOS_MAP": {
            port: {
                "dscp_to_tc_map": "AZURE",
                "tc_to_queue_map": "AZURE",
                "tc_to_pg_map": "AZURE",
                "pfc_to_queue_map": "AZURE",
                "pfc_enable": "3,4",
                "pfcwd_sw_enable": "3,4",
            }
            for port in ports
        },
        "PFC_WD": {port: {"action": "drop", "detection_time": "200", "restoration_time": "200"} for port in ports},
        "SCHEDULER": {"scheduler.0": {"type": "DWRR", "weight": "14"}, "scheduler.1": {"type": "DWRR", "weight": "15"}},
        "WRED_PROFILE": {"AZURE_LOSSLESS": {"ecn": "ecn_all", "wred_green_enable": "true", **marking}},
        "QUEUE": {
            f"{port}|{queue}": {"scheduler": "scheduler.1", "wred_profile": "AZURE_LOSSLESS"}
            if queue in (3, 4)
            else {"scheduler": "scheduler.0"}
            for port in ports
            for queue in range(7)
        },
        "BUFFER_POOL": {
            "ingress_lossless_pool": {"size": "10875072", "type": "ingress", "mode": "dynamic", "xoff": "4194112"},
            "egress_lossy_pool": {"size": "9243812", "type": "egress", "mode": "dynamic"},
            "egress_lossless_pool": {"size": "15982720", "type": "egress", "mode": "static"},
        },
        "BUFFER_PROFILE": {
            "ingress_lossy_profile": {"pool": "ingress_lossless_pool", "size": "0", "static_th": "10875072"},
            "egress_lossless_profile": {"pool": "egress_lossless_pool", "size": "1518", "static_th": "15982720"},
            "egress_lossy_profile": {"pool": "egress_lossy_pool", "size": "1518", "dynamic_th": "3"},
        },
        "BUFFER_PG": {f"{port}|0": {"profile": "ingress_lossy_profile"} for port in ports},
        "BUFFER_QUEUE": {f"{port}|{span}": {"profile": name} for port in ports for span, name in spans.items()},
    }


def test_of_what_sonic_comes_with_only_its_early_drops_are_an_error() -> None:
    found = prove_config_db(azure_device())
    assert {finding.check for finding in found} == {"wred-lossless"}
    sonic_yang().check(azure_device())


def test_what_sonic_comes_with_is_read_class_by_class() -> None:
    classes = read_config_db(azure_device())["Ethernet0"]
    assert {tc: classes[tc]["dscps"] for tc in (3, 4, 5, 6)} == {3: [3], 4: [4], 5: [46], 6: [48]}
    assert (classes[3]["lossless"], classes[3]["weight"], classes[3]["ecn"].kmin) == (True, 15, 1 << 20)
    assert (classes[5]["lossless"], classes[5]["weight"], classes[5]["ecn"], classes[5]["alpha"]) == (
        False,
        14,
        "off",
        8.0,
    )


_TEXTS = st.sampled_from(
    ["", "0", "5", "99", "-1", "3-4", "4-3", "x", "Ethernet0|5", "NULL", "[A|b]", "9" * 5000, "fourlane_kv"]
)
_VALUES = _TEXTS | st.none() | st.integers() | st.lists(_TEXTS, max_size=2)
_ENTRIES = st.dictionaries(_TEXTS, _VALUES, max_size=2) | _VALUES


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_is_written_is_judged_without_a_crash(data: st.DataObject) -> None:
    plan, switch, tables = case()
    wild: dict[str, Any] = copy.deepcopy(tables)
    for _ in range(data.draw(st.integers(1, 6))):
        table = data.draw(st.sampled_from(sorted(wild)))
        entries = wild[table]
        if not isinstance(entries, dict) or not entries or data.draw(st.integers(0, 9)) == 0:
            wild[table] = data.draw(st.dictionaries(_TEXTS, _ENTRIES, max_size=2) | _VALUES)
            continue
        key = data.draw(st.sampled_from([*entries, "", "x", "Ethernet0|3-9"]))
        if isinstance(entries.get(key), dict) and entries[key] and data.draw(st.booleans()):
            entries[key][data.draw(st.sampled_from(sorted(entries[key])))] = data.draw(_VALUES)
        else:
            entries[key] = data.draw(_ENTRIES)
    assert all(str(finding) for finding in prove_config_db(wild, chip=switch.model, plan=plan))
    assert all(str(difference) for difference in config_db_differences(wild, plan, "hpn"))
    assert isinstance(read_config_db(wild), dict)


def test_control_is_found_by_the_plans_code_point() -> None:
    plan, switch, tables = case()
    classes = {**plan.classes, TrafficClass.CONTROL: replace(plan.classes[TrafficClass.CONTROL], dscp=18)}
    wild = copy.deepcopy(tables)
    put("WRED_PROFILE", "fourlane_kv", wred_green_enable="true")(wild)
    found = prove_config_db(wild, chip=switch.model, plan=replace(plan, classes=classes))
    assert "wred-control" in {finding.check for finding in found}
