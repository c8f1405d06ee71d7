"""Stand-ins for a ConnectX NIC's tools: mlnx_qos, dcb, cma_roce_tos, mlxconfig and mlxreg, with one state.

One program under several names. It takes the arguments that the real tools take, refuses what they refuse, prints
what they print, and keeps what was set in the file that FAKE_NIC_STATE names; every call is noted there. The way the
real ones behave: mlnx-tools (mlnx_qos, cma_roce_tos), iproute2 (dcb-*.8), NVIDIA MFT documentation (mlxconfig, mlxreg).

It is started hundreds of times, so it imports next to nothing.
"""

# ruff: noqa: T201 (it stands in for programs that print)
# ruff: noqa: PTH123 (pathlib takes longer to import than all else)

from __future__ import annotations

import marshal
import os
import sys

FULL = 130944


def fresh(interface: str, device: str, pci: str) -> dict:
    """Return a port as it comes: DCBX in firmware, priorities by PCP, nothing paused, all classes alike."""
    return {
        "interface": interface,
        "device": device,
        "pci": pci,
        "dcbx": "firmware",
        "trust": "pcp",
        "dscp": [point >> 3 for point in range(64)],
        "pfc": [0] * 8,
        "cable": 7,
        "prio_tc": [1, 0, 2, 3, 4, 5, 6, 7],
        "tsa": ["vendor"] * 8,
        "bw": [0] * 8,
        "rate": [0] * 8,
        "buffer": [0] * 8,
        "buffer_size": [FULL, 0, 0, 0, 0, 0, 0, 0],
        "cm_tos": 0,
        "adaptive_next": 0,
        "adaptive_now": 0,
        "forced": 0,
    }


class Refused(Exception):
    """What the tool says, and exits with 1."""


def options(arguments: list[str], *, taking: str, alone: str = "", words: int = 0) -> dict[str, list[str]]:
    """Return what every option was given; "" has the words that belong to none.

    Args:
        taking: options with a value, apart by blanks. alone: those without. words: how many others must be there.
    """
    found: dict[str, list[str]] = {"": []}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word in alone.split():
            found[word] = []
        elif word in taking.split() and left:
            found.setdefault(word, []).append(left.pop(0))
        elif not word.startswith("-"):
            found[""].append(word)
        else:
            raise Refused(f"no such option: {word}")
    if len(found[""]) != words:
        raise Refused(f"Bad arguments: {arguments}")
    return found


def set_pfc(port: dict, bits: list[int], delay: int) -> None:
    """Set pauses; the driver then sorts priorities into receive buffers by itself."""
    port["pfc"], port["cable"] = bits, delay
    port["buffer"] = list(bits)
    port["buffer_size"] = [FULL, FULL if any(bits) else 0, 0, 0, 0, 0, 0, 0]


def set_ets(port: dict, prio_tc: list[int], tsa: list[str], bw: list[int]) -> None:
    for kind, share in zip(tsa, bw, strict=True):
        if kind not in ("strict", "ets", "vendor"):
            raise Refused(f"Bad TSA value: {kind}")
        if kind != "ets" and share:
            raise Refused("ETS BW for a strict/vendor TC must be 0")
    if "ets" in tsa and sum(bw) != 100:
        raise Refused("Netlink error: Bad value. see dmesg.")
    port["prio_tc"], port["tsa"], port["bw"] = prio_tc, tsa, bw


def eight(text: str, name: str) -> list[str]:
    items = text.split(",")
    if len(items) != 8:
        raise Refused(f"{name} list must have 8 items")
    return items


def mlnx_qos(ports: list[dict], arguments: list[str]) -> None:
    lists = "--pfc --prio_tc --tsa --tcbw --ratelimit --prio2buffer"
    asked = options(arguments, taking=f"-i -d --trust --cable_len --dscp2prio {lists}", alone="-a")
    port = named(ports, "interface", asked["-i"][0])
    if "--trust" in asked and "--dscp2prio" in asked:
        raise Refused("trust and dscp2prio commands cannot be used at the same time.")
    if "-d" in asked:
        port["dcbx"] = {"os": "host", "fw": "firmware"}[asked["-d"][0]]
    given = {name: eight(asked[name][0], name) for name in lists.split() if name in asked}
    if "--pfc" in asked or "--cable_len" in asked:  # what is not given becomes 0, as with the real one
        set_pfc(port, whole(given.get("--pfc", ["0"] * 8)), int(asked.get("--cable_len", ["0"])[0]))
    map_points(port, asked.get("--dscp2prio", ()))
    port["trust"] = asked.get("--trust", [port["trust"]])[0]
    port["buffer"] = whole(given.get("--prio2buffer", port["buffer"]))
    port["rate"] = whole(given.get("--ratelimit", port["rate"]))
    if "--prio_tc" in given:
        set_ets(port, whole(given["--prio_tc"]), given["--tsa"], whole(given["--tcbw"]))
    show_mlnx_qos(port)


def whole(items: list) -> list[int]:
    return [int(item) for item in items]


def map_points(port: dict, changes: list[str] | tuple[str, ...]) -> None:
    for change in changes:
        what, point, priority = change.split(",")
        if what != "set" or int(point) > 63 or int(priority) > 7:
            raise Refused("Invalid dscp2prio command. Refer to the help.")
        port["dscp"][int(point)] = int(priority)


def show_mlnx_qos(port: dict) -> None:
    print(f"DCBX mode: {'OS' if port['dcbx'] == 'host' else 'Firmware'} controlled")
    print(f"Priority trust state: {port['trust']}")
    if port["trust"] == "dscp":
        print("dscp2prio mapping:")
        for priority in range(8):
            points = [f"{point:02d}," for point in reversed(range(64)) if port["dscp"][point] == priority]
            for first in range(0, len(points), 8):
                print(f"\tprio:{priority} dscp:{''.join(points[first : first + 8])}")
    print("default priority:")
    print(f"Receive buffer size (bytes): {''.join(f'{size},' for size in port['buffer_size'])}total_size=262000")
    print(f"Cable len: {port['cable']}")
    print("PFC configuration:\n\tpriority    0   1   2   3   4   5   6   7")
    print(f"\tenabled     {''.join(f'{bit}   ' for bit in port['pfc'])}")
    print(f"\tbuffer      {''.join(f'{number}   ' for number in port['buffer'])}")
    for tc in range(8):
        rate = f"{port['rate'][tc]:.1f} Gbps" if port["rate"][tc] else "unlimited"
        share = f", bw: {port['bw'][tc]}%" if port["tsa"][tc] == "ets" else ""
        print(f"tc: {tc} ratelimit: {rate}, tsa: {port['tsa'][tc]}{share}")
        for priority in range(8):
            if port["prio_tc"][priority] == tc:
                print(f"\t priority:  {priority}")


def pairs(words: list[str], most: int) -> dict[int, str]:
    found = {}
    for word in words:
        key, _, value = word.partition(":")
        if not key.isdigit() or int(key) > most or not value:
            raise Refused(f"Invalid mapping {word}")
        found[int(key)] = value
    return found


def dcb(ports: list[dict], arguments: list[str]) -> None:
    words = [word for word in arguments if word != "-N"]
    what, verb, dev, interface, *rest = words
    port = named(ports, "interface", interface)
    if dev != "dev":
        raise Refused("Device not specified")
    if verb == "show":
        show_dcb(port, what)
        return
    values: dict[str, list[str]] = {}
    for word in rest:
        if word[0].isdigit() or word in ("on", "off"):
            values[next(reversed(values))].append(word)
        else:
            values[word] = []
    globals()[f"dcb_{what}"](port, verb, values)


def dcb_app(port: dict, verb: str, values: dict[str, list[str]]) -> None:
    assert verb == "replace"
    for point, priority in pairs(values["dscp-prio"], 63).items():
        port["dscp"][point] = int(priority)
    port["trust"] = "dscp"


def dcb_dcbx(port: dict, verb: str, values: dict[str, list[str]]) -> None:
    assert (verb, set(values)) == ("set", {"host", "ieee"})
    port["dcbx"] = "host"


def dcb_ets(port: dict, verb: str, values: dict[str, list[str]]) -> None:
    assert (verb, values["willing"]) == ("set", ["off"])
    prio_tc, tsa, bw = (list(pairs(values[name], 7).values()) for name in ("prio-tc", "tc-tsa", "tc-bw"))
    set_ets(port, [int(item) for item in prio_tc], tsa, [int(item) for item in bw])


def dcb_pfc(port: dict, verb: str, values: dict[str, list[str]]) -> None:
    assert verb == "set"
    set_pfc(port, [int(item == "on") for item in pairs(values["prio-pfc"], 7).values()], int(values["delay"][0]))


def dcb_maxrate(port: dict, verb: str, values: dict[str, list[str]]) -> None:
    assert verb == "set"
    port["rate"] = [int(item.removesuffix("Gbit")) for item in pairs(values["tc-maxrate"], 7).values()]


def dcb_buffer(port: dict, verb: str, values: dict[str, list[str]]) -> None:
    assert verb == "set"
    port["buffer"] = [int(item) for item in pairs(values["prio-buffer"], 7).values()]


def show_dcb(port: dict, what: str) -> None:
    def mapping(values: list) -> str:
        return " ".join(f"{key}:{value}" for key, value in enumerate(values))

    if what == "app" and port["trust"] == "dscp":
        print(f"dscp-prio {mapping(port['dscp'])}")
    elif what == "ets":
        print("willing off ets-cap 8 cbs off")
        print(f"tc-bw {mapping(port['bw'])}\npg-bw {mapping([0] * 8)}\ntc-tsa {mapping(port['tsa'])}")
        print(f"prio-tc {mapping(port['prio_tc'])}\nreco-tc-bw {mapping([0] * 8)}\nreco-prio-tc {mapping([0] * 8)}")
    elif what == "pfc":
        print(f"pfc-cap 8 macsec-bypass off delay {port['cable']}")
        print(f"prio-pfc {mapping(['on' if bit else 'off' for bit in port['pfc']])}")
    elif what == "maxrate":
        print(f"tc-maxrate {mapping([f'{rate}Gbit' if rate else '0bit' for rate in port['rate']])}")
    elif what == "dcbx":
        print("host ieee" if port["dcbx"] == "host" else "lld-managed ieee")
    elif what == "buffer":
        print(f"prio-buffer {mapping(port['buffer'])}")
        sizes = [f"{size}b" for size in port["buffer_size"]]
        print(f"buffer-size {mapping(sizes)}\ntotal-size 256Kb")


def cma_roce_tos(ports: list[dict], arguments: list[str]) -> None:
    asked = options(arguments, taking="-d -t")
    port = named(ports, "device", asked["-d"][0])
    if "-t" in asked:
        port["cm_tos"] = int(asked["-t"][0])
    print(port["cm_tos"])


def mlxconfig(ports: list[dict], arguments: list[str]) -> None:
    asked = options(arguments, taking="-d", alone="-y", words=2)
    port = named(ports, "pci", asked["-d"][0])
    verb, what = asked[""]
    name, _, value = what.partition("=")
    if name != "ROCE_ADAPTIVE_ROUTING_EN" or verb != ("set" if value else "query") or (value and "-y" not in asked):
        raise Refused(f"-E- unexpected: {arguments}")
    if value:
        port["adaptive_next"] = int(value)
    state = f"{bool(port['adaptive_next'])}({port['adaptive_next']})"
    print(f"Device #1:\n----------\nConfigurations:{'':40}Next Boot\n        {name:<44}{state:<16}")


def mlxreg(ports: list[dict], arguments: list[str]) -> None:
    asked = options(arguments, taking="-d --reg_name --set", alone="--yes --get")
    port = named(ports, "pci", asked["-d"][0])
    if asked["--reg_name"] != ["ROCE_ACCL"] or "--yes" not in asked:
        raise Refused("-E- Can't find access register")
    if "--set" in asked:
        if asked["--set"] != ["adaptive_routing_forced_en=0x1"] or not port["adaptive_now"]:
            raise Refused("-E- Failed to send access register: ME_REG_ACCESS_BAD_PARAM")
        port["forced"] = 1
    print("Sending access register...\nField Name                              | Data")
    print("roce_adp_retrans_field_select           | 0x00000001")
    print(f"adaptive_routing_forced_en_field_select | 0x{port['adaptive_now']:08x}")
    print("roce_adp_retrans_en                     | 0x00000001")
    print(f"adaptive_routing_forced_en              | 0x{port['forced']:08x}")


def named(ports: list[dict], field: str, value: str) -> dict:
    for port in ports:
        if port[field] == value:
            return port
    raise Refused(f"no such device: {value}")


def load(file: str) -> dict:
    with open(file, "rb") as stream:
        return marshal.load(stream)


def save(file: str, state: dict) -> None:
    with open(file, "wb") as stream:
        marshal.dump(state, stream)


def main(tool: str) -> int:
    """Play a tool."""
    file = os.environ["FAKE_NIC_STATE"]
    state = load(file)
    state["calls"].append([tool, *sys.argv[1:]])
    code = 0
    try:
        globals()[tool](state["ports"], sys.argv[1:])
    except Refused as refusal:
        print(refusal)
        code = 1
    save(file, state)
    return code
