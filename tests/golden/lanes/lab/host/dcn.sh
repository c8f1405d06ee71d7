#!/bin/sh
# Lanes of a host's interfaces on the dcn of lab, as the lane plan lab says.
# Written by fourlane lanes render --target host: change the plan, not this file.

INTERFACES=dcn
CLASSES='kv:18 control:48 bulk:8 default:0'
TABLE=fourlane_dcn

apply_lines() {
    cat <<END_OF_LINES
qdisc replace dev $1 root bfifo
qdisc del dev $1 root
qdisc add dev $1 root handle 2: htb default 0x60
class add dev $1 parent 2: classid 2:1 htb rate 500000000bit burst 18750 cburst 18750
class add dev $1 parent 2:1 classid 2:32 htb prio 1 rate 427500000bit ceil 500000000bit burst 18750 cburst 18750 quantum 27252
qdisc add dev $1 parent 2:32 handle 232: bfifo limit 524288
class add dev $1 parent 2:1 classid 2:46 htb prio 0 rate 25000000bit ceil 25000000bit burst 18750 cburst 18750 quantum 1514
qdisc add dev $1 parent 2:46 handle 246: bfifo limit 357717
class add dev $1 parent 2:1 classid 2:51 htb prio 1 rate 23750000bit ceil 500000000bit burst 18750 cburst 18750 quantum 1514
qdisc add dev $1 parent 2:51 handle 251: bfifo limit 116508
class add dev $1 parent 2:1 classid 2:60 htb prio 1 rate 23750000bit ceil 500000000bit burst 18750 cburst 18750 quantum 1514
qdisc add dev $1 parent 2:60 handle 260: bfifo limit 116508
filter add dev $1 parent 2: protocol ip prio 10 u32 match ip dsfield 0x48 0xfc flowid 2:32
filter add dev $1 parent 2: protocol ipv6 prio 11 u32 match ip6 priority 0x48 0xfc flowid 2:32
filter add dev $1 parent 2: protocol ip prio 10 u32 match ip dsfield 0xc0 0xfc flowid 2:46
filter add dev $1 parent 2: protocol ipv6 prio 11 u32 match ip6 priority 0xc0 0xfc flowid 2:46
filter add dev $1 parent 2: protocol ip prio 10 u32 match ip dsfield 0x20 0xfc flowid 2:51
filter add dev $1 parent 2: protocol ipv6 prio 11 u32 match ip6 priority 0x20 0xfc flowid 2:51
END_OF_LINES
}

lanes_wanted() {
    cat <<END_OF_LINES
root 2: default 0x60
class 2:1 prio - rate 500000000 ceil 500000000
class 2:32 prio 1 rate 427500000 ceil 500000000
fifo 2:32 limit 524288
filter ip 00480000/00fc0000 at 0 to 2:32
filter ipv6 04800000/0fc00000 at 0 to 2:32
class 2:46 prio 0 rate 25000000 ceil 25000000
fifo 2:46 limit 357717
filter ip 00c00000/00fc0000 at 0 to 2:46
filter ipv6 0c000000/0fc00000 at 0 to 2:46
class 2:51 prio 1 rate 23750000 ceil 500000000
fifo 2:51 limit 116508
filter ip 00200000/00fc0000 at 0 to 2:51
filter ipv6 02000000/0fc00000 at 0 to 2:51
class 2:60 prio 1 rate 23750000 ceil 500000000
fifo 2:60 limit 116508
END_OF_LINES
}

# ---- from here on the script is the same for every network ----

set -u
LC_ALL=C
export LC_ALL
PROGRAM=$0

say() { printf '%s\n' "$*"; }

complain() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; }

usage() {
    say "usage: $PROGRAM apply [MARK...] | check [MARK...] | remove"
    say
    say "  apply    give $INTERFACES the plan's lanes, then check; queues there are replaced"
    say "  check    read back what the kernel holds, print what differs from the plan; exit 1 if anything does"
    say "  remove   take lanes and marks away again"
    say
    say "MARK is CLASS=MATCH: what nftables' MATCH says gets the mark of CLASS, for programs that set none"
    say "themselves. Such as: expert='ip saddr 10.0.0.7'  kv='tcp dport 7000-7031'  ($CLASSES)"
    say
    say "Exit codes: 0 as planned, 1 different or failed, 2 wrong use, 3 a tool, interface or right is missing."
    say "Lanes are gone after a reboot. FOURLANE_INTERFACES names other interfaces than those of the cluster."
}

need() {
    for tool in "$@"; do
        if ! command -v "$tool" >/dev/null 2>&1; then
            complain "not found: $tool (tc: package iproute2; nft: package nftables). Nothing was changed."
            exit 3
        fi
    done
    for interface in $INTERFACES; do
        if ! ip link show dev "$interface" >/dev/null 2>&1; then
            complain "no interface $interface here; set FOURLANE_INTERFACES. Nothing was changed."
            exit 3
        fi
    done
}

# dscp_of CLASS: its code point; nothing if there is no such class.
dscp_of() {
    for pair in $CLASSES; do
        if [ "${pair%%:*}" = "$1" ]; then printf '%s' "${pair##*:}"; fi
    done
}

check_marks() {
    for mark in "$@"; do
        class=${mark%%=*}
        if [ "$class" = "$mark" ] || [ -z "$(dscp_of "$class")" ]; then
            complain "expected CLASS=MATCH with one of $CLASSES, got $mark. Nothing was changed."
            exit 2
        fi
    done
}

# marks_wanted MARK...: the rules, for nft.
marks_wanted() {
    for interface in $INTERFACES; do
        for mark in "$@"; do
            class=${mark%%=*}
            match=${mark#*=}
            say "oifname \"$interface\" meta nfproto ipv4 $match ip dscp set $(dscp_of "$class") comment \"$class\""
            case $match in
                *"ip "*) ;;
                *) say "oifname \"$interface\" meta nfproto ipv6 $match ip6 dscp set $(dscp_of "$class") comment \"$class\"" ;;
            esac
        done
    done
}

apply_marks() {
    nft delete table inet "$TABLE" 2>/dev/null
    if [ $# -eq 0 ]; then return 0; fi
    {
        say "table inet $TABLE {"
        say "chain lanes {"
        say "type route hook output priority mangle; policy accept;"
        marks_wanted "$@"
        say "}"
        say "}"
    } | nft -f -
}

# lanes_held INTERFACE: what the kernel holds, in the words of lanes_wanted.
lanes_held() {
    tc class show dev "$1" | awk '
        function bits(text,   unit, number) {
            number = text + 0
            unit = text
            sub(/^[0-9.]+/, "", unit)
            if (unit == "Kbit") number *= 1000
            if (unit == "Mbit") number *= 1000000
            if (unit == "Gbit") number *= 1000000000
            if (unit == "Tbit") number *= 1000000000000
            return sprintf("%.0f", number)
        }
        $1 == "class" {
            prio = "-"
            for (i = 1; i < NF; i++) {
                if ($i == "prio") prio = $(i + 1)
                if ($i == "rate") rate = bits($(i + 1))
                if ($i == "ceil") ceil = bits($(i + 1))
            }
            print "class", $3, "prio", prio, "rate", rate, "ceil", ceil
        }'
    # One entry a line; limits are exact only here.
    tc -j qdisc show dev "$1" | sed 's/},{"kind"/}\n{"kind"/g' | sed -n \
        -e 's/.*"kind":"htb","handle":"\([^"]*\)".*"default":"\([^"]*\)".*/root \1 default \2/p' \
        -e 's/.*"kind":"bfifo".*"parent":"\([^"]*\)".*"limit":\([0-9]*\).*/fifo \1 limit \2/p'
    tc filter show dev "$1" | awk '
        $1 == "filter" {
            flow = ""
            for (i = 1; i < NF; i++) {
                if ($i == "protocol") protocol = $(i + 1)
                if ($i ~ /flowid$/) flow = $(i + 1)
            }
        }
        $1 == "match" { print "filter", protocol, $2, "at", $4, "to", flow }'
}

check() {
    different=0
    for interface in $INTERFACES; do
        wanted=$(lanes_wanted | sort)
        held=$(lanes_held "$interface" | sort)
        if [ "$wanted" = "$held" ]; then
            say "$interface: as planned"
            continue
        fi
        different=1
        say "$interface: differs from the plan (- wanted, + found)"
        {
            printf '%s\n' "$wanted" | sed 's/^/-/'
            printf '%s\n' "$held" | sed 's/^/+/'
        } | awk 'length($0) > 1 { line = substr($0, 2); seen[line] = seen[line] substr($0, 1, 1); if (!(line in at)) { at[line] = ++n; order[n] = line } }
            END { for (i = 1; i <= n; i++) if (seen[order[i]] == "-" || seen[order[i]] == "+") print "  " seen[order[i]] " " order[i] }'
    done
    if [ $# -gt 0 ]; then
        wanted=$(marks_wanted "$@" | wc -l)
        held=$(nft list table inet "$TABLE" 2>/dev/null | grep -c 'dscp set')
        if [ "$wanted" -ne "$held" ]; then
            different=1
            say "marks: wanted $wanted rules in the nftables table $TABLE, found $held"
        fi
    fi
    return $different
}

INTERFACES=${FOURLANE_INTERFACES:-$INTERFACES}
mode=${1:-}
if [ $# -gt 0 ]; then shift; fi
case $mode in
    apply)
        check_marks "$@"
        need tc ip awk sed
        if [ $# -gt 0 ]; then need nft; fi
        for interface in $INTERFACES; do
            if ! apply_lines "$interface" | tc -batch -; then
                complain "$interface: tc refused (root, or CAP_NET_ADMIN, is needed); the interface may have half its lanes"
                exit 1
            fi
        done
        if command -v nft >/dev/null 2>&1 && ! apply_marks "$@"; then
            complain "nft refused the marks"
            exit 1
        fi
        check "$@"
        ;;
    check)
        check_marks "$@"
        need tc ip awk sed
        check "$@"
        ;;
    remove)
        need tc ip
        for interface in $INTERFACES; do tc qdisc del dev "$interface" root 2>/dev/null; done
        if command -v nft >/dev/null 2>&1; then nft delete table inet "$TABLE" 2>/dev/null; fi
        say "lanes and marks are gone from $INTERFACES"
        ;;
    -h | --help | help) usage ;;
    *)
        usage >&2
        exit 2
        ;;
esac
