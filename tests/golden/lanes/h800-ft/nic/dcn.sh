#!/bin/sh
# The NICs on the dcn of h800-ft, set as the lane plan h800-ft says.
# Written by fourlane lanes render --target nic: change the plan, not this file.
#
# NIC: connectx-6, 200Gbps. Not run on one by its authors: start with --dry-run on one server.
#
# Weights share what strict classes leave, and only while classes wait. A cap is rounded up to whole Gbit/s.
#
# /sys/class/infiniband/<device>/tc/1/traffic_class is left empty on purpose. A ToS byte there replaces those of all
# queue pairs set up through the kernel (NCCL, Mooncake, UCX over verbs) but not of those set up past it (NVSHMEM
# IBGDA, NCCL GIN), so that classes no longer tell anything apart (NVIDIA/nccl issue 2383, Mooncake issue 1699).
# Classes are chosen by environment variables instead: --target env. --check reports it when it is set.

set -u

NETWORK='dcn'
PORTS='dcn0=mlx5_8 dcn1=mlx5_9'
PRIORITY_OF_DSCP='0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 6 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0'
TC_OF_PRIORITY='0 1 2 0 0 0 6 0'
TSA_OF_TC='ets ets ets ets ets ets strict ets'
WEIGHT_OF_TC='5 5 90 0 0 0 0 0'
GBPS_OF_TC='0 0 0 0 0 0 10 0'
PFC_OF_PRIORITY='0 0 0 0 0 0 0 0'
CABLE_METRES='5'
RDMA='1'
CM_TOS='0'
CC_OF_PRIORITY='0 1 1 0 0 0 0 0'
CNP_DSCP='48'
CNP_PRIORITY='6'
ADAPTIVE_ROUTING='0'

describe() {
    cat <<'END'
On dcn0, dcn1:
  priority 6  control     DSCP 48  strict, at most 10 Gbit/s   lossy  congestion control off
  priority 2  kv          DSCP 18  90 %                        lossy  congestion control on
  priority 1  bulk        DSCP  8  5 %                         lossy  congestion control on
  priority 0  default     DSCP  0  5 %                         lossy  congestion control off
END
}

# ---- from here on the script is the same for every network ----

LC_ALL=C
export LC_ALL
SYSFS=${FOURLANE_SYSFS:-/sys}
PROGRAM=$0
MODE=
PORT=
DIFFERENCES=0
FAILURES=0
UNREAD=0
QOS=
MLXCONFIG=
MLXREG=

say() { printf '%s\n' "$*"; }

complain() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; }

usage() {
    say "usage: $PROGRAM --check | --dry-run | --apply"
    say
    say "  --check    read the NICs, print what differs from the plan; exit 1 if anything does"
    say "  --dry-run  read the NICs, print the commands that would bring them to the plan; run none of them"
    say "  --apply    run those commands, then check"
    say
    say "Exit codes: 0 as planned, 1 different, 2 wrong use, 3 a tool, driver or NIC is missing."
    say "Settings are gone after a reboot: run --apply at every boot, before the first job."
    say
    describe
}

# first_of NAME...: print the first tool there is.
first_of() {
    for name in "$@"; do
        if command -v "$name" >/dev/null 2>&1; then
            printf '%s' "$name"
            return 0
        fi
    done
    return 1
}

find_tools() {
    missing=''
    QOS=$(first_of mlnx_qos dcb) || missing="$missing, mlnx_qos (mlnx-tools) or dcb (iproute2)"
    first_of awk >/dev/null || missing="$missing, awk"
    if [ "$RDMA" = 1 ]; then
        first_of cma_roce_tos >/dev/null || missing="$missing, cma_roce_tos (mlnx-tools)"
    fi
    if [ "$ADAPTIVE_ROUTING" = 1 ]; then
        MLXCONFIG=$(first_of mlxconfig mstconfig) || missing="$missing, mlxconfig (MFT) or mstconfig (mstflint)"
        MLXREG=$(first_of mlxreg mstreg) || missing="$missing, mlxreg (MFT) or mstreg (mstflint)"
    fi
    if [ -n "$missing" ]; then
        complain "not found: ${missing#, }; install it, or add its folder to PATH. Nothing was read or changed."
        exit 3
    fi
}

# ---- differences: found, told, mended ----

# put FILE VALUE: write a value into sysfs.
# shellcheck disable=SC2317 # run by act
put() { printf '%s\n' "$2" >"$1"; }

spell() {
    if [ "$1" = put ]; then say "echo $3 > $2"; else say "$*"; fi
}

# act [COMMAND...]: run it with --apply, print it with --dry-run.
act() {
    if [ $# -eq 0 ]; then return 0; fi
    case $MODE in
        dry-run) say "    would run: $(spell "$@")" ;;
        apply)
            say "    run: $(spell "$@")"
            if ! "$@" >/dev/null; then
                FAILURES=$((FAILURES + 1))
                complain "$PORT: failed: $(spell "$@")"
            fi
            ;;
    esac
}

tell() {
    DIFFERENCES=$((DIFFERENCES + 1))
    say "$PORT: $1"
}

# settle LABEL FOUND WANTED [COMMAND...]: one value.
settle() {
    if [ "$2" = "$3" ]; then return 0; fi
    tell "$1: found ${2:-none}, wanted ${3:-none}"
    shift 3
    act "$@"
}

# settle_list LABEL FOUND WANTED [COMMAND...]: a value for each of 0, 1, 2, ...; the numbers that differ alike in a line.
settle_list() {
    if [ "$2" = "$3" ]; then return 0; fi
    lines=$(awk -v found="$2" -v wanted="$3" '
        BEGIN {
            count = split(wanted, w, " ")
            split(found, f, " ")
            for (i = 1; i <= count; i++) {
                if (f[i] == w[i]) continue
                how = "found " (f[i] == "" ? "none" : f[i]) ", wanted " w[i]
                if (!(how in at)) order[++kinds] = how
                at[how] = at[how] (at[how] == "" ? "" : ",") (i - 1)
            }
            for (j = 1; j <= kinds; j++) print at[order[j]] ": " order[j]
        }' </dev/null)
    if [ -z "$lines" ]; then return 0; fi
    label=$1
    shift 3
    while IFS= read -r line; do tell "$label $line"; done <<END_OF_LINES
$lines
END_OF_LINES
    act "$@"
}

unread() {
    UNREAD=$((UNREAD + 1))
    complain "$PORT: cannot be read: $1"
}

# contents FILE: print the one line of a file in sysfs.
contents() {
    if [ -r "$1" ]; then
        read -r line <"$1"
        printf '%s' "$line"
    fi
}

commas() { printf '%s' "$*" | tr ' ' ','; }

# numbered SUFFIX VALUE...: "0:a 1:b ..."
numbered() {
    suffix=$1
    shift
    index=0
    for value in "$@"; do
        printf '%s:%s%s ' "$index" "$value" "$suffix"
        index=$((index + 1))
    done
}

# ---- what the NIC holds, as lines of a name and a value for each of 0, 1, 2, ... ----

from_mlnx_qos() {
    awk '
        function row(name, values, count,    i, line) {
            for (i = 0; i < count; i++) line = line " " ((i in values) ? values[i] : "none")
            print name line
        }
        /^DCBX mode:/ { print "dcbx " ($3 == "OS" ? "host" : "firmware") }
        /^Priority trust state:/ { print "trust " $4 }
        /prio:[0-7] dscp:/ {
            priority = substr($1, 6)
            count = split(substr($2, 6), points, ",")
            for (i = 1; i <= count; i++)
                if (points[i] != "") {
                    point = points[i] + 0
                    dscp[point] = (point in dscp) ? dscp[point] "/" priority : priority
                }
        }
        /^Receive buffer size/ { sub(/^[^:]*: */, ""); sub(/,?total_size.*$/, ""); gsub(/,/, " "); print "buffer_size " $0 }
        /^Cable len:/ { print "cable " $3 }
        /^[ \t]+enabled/ { for (i = 0; i < 8; i++) pfc[i] = $(i + 2) }
        /^[ \t]+buffer/ { for (i = 0; i < 8; i++) buffer[i] = $(i + 2); buffers = 1 }
        /^tc: / {
            tc = $2
            rate[tc] = ($4 ~ /^unlimited/) ? 0 : $4 + 0
            kind = $0
            sub(/^.*tsa: /, "", kind)
            share = 0
            if (kind ~ /^ets/) { share = kind; sub(/^.*bw: /, "", share); share += 0; kind = "ets" }
            tsa[tc] = kind
            weight[tc] = share
        }
        /^[ \t]+priority: / { prio_tc[$2] = tc }
        END {
            row("dscp", dscp, 64); row("pfc", pfc, 8); row("prio_tc", prio_tc, 8); row("tsa", tsa, 8)
            row("weight", weight, 8); row("rate", rate, 8)
            if (buffers) row("buffer", buffer, 8)
        }'
}

read_dcb() {
    dcb -N app show dev "$IF" dscp-prio &&
        dcb ets show dev "$IF" &&
        dcb pfc show dev "$IF" &&
        dcb maxrate show dev "$IF" &&
        printf 'dcbx %s\n' "$(dcb dcbx show dev "$IF")" || return 1
    dcb buffer show dev "$IF" 2>/dev/null || return 0 # not every driver has it
}

from_dcb() {
    awk '
        function row(name, key, count,    i, line) {
            for (i = 0; i < count; i++) line = line " " (((key, i) in seen) ? seen[key, i] : "none")
            print name line
        }
        function gigabits(text) {
            if (text ~ /Tbit$/) return text * 1000
            if (text ~ /Gbit$/) return text + 0
            if (text ~ /Mbit$/) return text / 1000
            if (text ~ /Kbit$/) return text / 1000000
            return text / 1000000000
        }
        /^dcbx/ { print "dcbx " (($0 ~ / host/ && $0 !~ /lld-managed/) ? "host" : "firmware"); next }
        {
            for (f = 1; f <= NF; f++) {
                if ($f ~ /^[0-9]+:/) {
                    split($f, pair, ":")
                    value = pair[2]
                    if (key == "prio-pfc") value = (value == "on")
                    if (key == "tc-maxrate") value = gigabits(value)
                    if ((key, pair[1] + 0) in seen && key == "dscp-prio") value = seen[key, pair[1] + 0] "/" value
                    seen[key, pair[1] + 0] = value
                    any[key] = 1
                } else if (key == "delay") { print "cable " $f; key = "" }
                else key = $f
            }
        }
        END {
            print "trust " (any["dscp-prio"] ? "dscp" : "pcp")
            row("dscp", "dscp-prio", 64); row("pfc", "prio-pfc", 8); row("prio_tc", "prio-tc", 8)
            row("tsa", "tc-tsa", 8); row("weight", "tc-bw", 8); row("rate", "tc-maxrate", 8)
            if (any["prio-buffer"]) row("buffer", "prio-buffer", 8)
            if (any["buffer-size"]) row("buffer_size", "buffer-size", 8)
        }'
}

read_state() {
    if [ "$QOS" = mlnx_qos ]; then
        raw=$(mlnx_qos -i "$IF" -a) && lines=$(printf '%s\n' "$raw" | from_mlnx_qos) || return 1
    else
        raw=$(read_dcb) && lines=$(printf '%s\n' "$raw" | from_dcb) || return 1
    fi
    DCBX='' TRUST='' CABLE='' DSCP='' PFC='' TCS='' TSA='' WEIGHTS='' RATES='' BUFFERS='' BUFFER_SIZES=''
    while read -r name values; do
        case $name in
            dcbx) DCBX=$values ;;
            trust) TRUST=$values ;;
            cable) CABLE=$values ;;
            dscp) DSCP=$values ;;
            pfc) PFC=$values ;;
            prio_tc) TCS=$values ;;
            tsa) TSA=$values ;;
            weight) WEIGHTS=$values ;;
            rate) RATES=$values ;;
            buffer) BUFFERS=$values ;;
            buffer_size) BUFFER_SIZES=$values ;;
        esac
    done <<END_OF_LINES
$lines
END_OF_LINES
}

reread() { if [ "$MODE" = apply ]; then read_state; fi; }

# ---- priorities, bandwidth and pauses of an interface ----

trust() {
    if [ "$QOS" = mlnx_qos ]; then
        settle 'DCBX, run by' "$DCBX" host mlnx_qos -i "$IF" -d os
        settle 'priority taken from' "$TRUST" dscp mlnx_qos -i "$IF" --trust dscp
    else
        # The driver goes by DSCP as soon as it has a DSCP map; there is no other switch.
        settle 'DCBX, run by' "$DCBX" host dcb dcbx set dev "$IF" host ieee
    fi
    reread
}

dscp_map() {
    if [ "$QOS" = mlnx_qos ] && [ "$TRUST" != dscp ]; then return 0; fi # it shows no map then
    found=$DSCP
    if [ "$QOS" = mlnx_qos ]; then set -- mlnx_qos -i "$IF"; else set -- dcb app replace dev "$IF" dscp-prio; fi
    point=0
    for wanted in $PRIORITY_OF_DSCP; do
        held=${found%% *}
        found=${found#* }
        if [ "$held" != "$wanted" ]; then
            if [ "$QOS" = mlnx_qos ]; then
                set -- "$@" --dscp2prio "set,$point,$wanted"
            else
                set -- "$@" "$point:$wanted"
            fi
        fi
        point=$((point + 1))
    done
    settle_list 'priority of DSCP' "$DSCP" "$PRIORITY_OF_DSCP" "$@"
}

# shellcheck disable=SC2046,SC2086 # lists are meant to fall into words
bandwidth() {
    if [ "$QOS" = mlnx_qos ]; then
        set -- mlnx_qos -i "$IF" --prio_tc "$(commas $TC_OF_PRIORITY)" --tsa "$(commas $TSA_OF_TC)" \
            --tcbw "$(commas $WEIGHT_OF_TC)"
    else
        set -- dcb ets set dev "$IF" willing off prio-tc $(numbered '' $TC_OF_PRIORITY) \
            tc-tsa $(numbered '' $TSA_OF_TC) tc-bw $(numbered '' $WEIGHT_OF_TC)
    fi
    # One command sets all three.
    before=$DIFFERENCES
    settle_list 'traffic class of priority' "$TCS" "$TC_OF_PRIORITY"
    settle_list 'scheduler of traffic class' "$TSA" "$TSA_OF_TC"
    settle_list 'percent of traffic class' "$WEIGHTS" "$WEIGHT_OF_TC"
    if [ "$DIFFERENCES" -gt "$before" ]; then act "$@"; fi
    if [ "$QOS" = mlnx_qos ]; then
        set -- mlnx_qos -i "$IF" --ratelimit "$(commas $GBPS_OF_TC)"
    else
        # Some versions of iproute2 take bytes for kilobits here: a cap that still differs after --apply wants mlnx_qos
        # or a newer iproute2.
        set -- dcb maxrate set dev "$IF" tc-maxrate $(numbered Gbit $GBPS_OF_TC)
    fi
    settle_list 'Gbit/s at most (0: no limit) of traffic class' "$RATES" "$GBPS_OF_TC" "$@"
}

# shellcheck disable=SC2046,SC2086
pauses() {
    switches=''
    for value in $PFC_OF_PRIORITY; do
        if [ "$value" = 1 ]; then switches="$switches on"; else switches="$switches off"; fi
    done
    # Priorities and cable go together: mlnx_qos sets the one it is not told to 0.
    if [ "$QOS" = mlnx_qos ]; then
        set -- mlnx_qos -i "$IF" --pfc "$(commas $PFC_OF_PRIORITY)" --cable_len "$CABLE_METRES"
    else
        set -- dcb pfc set dev "$IF" prio-pfc $(numbered '' $switches) delay "$CABLE_METRES"
    fi
    before=$DIFFERENCES
    settle_list 'PFC of priority' "$PFC" "$PFC_OF_PRIORITY"
    settle 'cable, metres' "$CABLE" "$CABLE_METRES"
    if [ "$DIFFERENCES" -gt "$before" ]; then act "$@"; fi
    reread
    buffers
}

# Once PFC is on the driver gives its priorities receive buffers of their own, sized by MTU and cable. Sizes are left to
# it; a paused priority among those that are not is moved to buffer 1, as the driver would have it.
# shellcheck disable=SC2046,SC2086
buffers() {
    if [ -z "$BUFFERS" ]; then return 0; fi
    faults=$(awk -v buffers="$BUFFERS" -v sizes="$BUFFER_SIZES" -v pfc="$PFC_OF_PRIORITY" '
        BEGIN {
            count = split(buffers, buffer, " ")
            known = split(sizes, size, " ")
            split(pfc, on, " ")
            for (i = 1; i <= count; i++) if (on[i] != 1) lossy[buffer[i]] = 1
            for (i = 1; i <= count; i++) {
                if (on[i] != 1) continue
                if (buffer[i] in lossy) print "shared " (i - 1) " " buffer[i]
                else if (known && size[buffer[i] + 1] + 0 == 0) print "empty " (i - 1) " " buffer[i]
            }
        }' </dev/null)
    if [ -z "$faults" ]; then return 0; fi
    shared=0
    while read -r kind priority buffer; do
        if [ "$kind" = shared ]; then
            shared=1
            tell "receive buffer of priority $priority: found $buffer, that of priorities without PFC; wanted one of its own"
        else
            tell "receive buffer of priority $priority: found $buffer, of 0 bytes; wanted room for a pause (the driver's to give)"
        fi
    done <<END_OF_LINES
$faults
END_OF_LINES
    if [ "$shared" = 0 ]; then return 0; fi
    if [ "$QOS" = mlnx_qos ]; then
        act mlnx_qos -i "$IF" --prio2buffer "$(commas $PFC_OF_PRIORITY)"
    else
        act dcb buffer set dev "$IF" prio-buffer $(numbered '' $PFC_OF_PRIORITY)
    fi
}

# ---- RDMA of a device ----

connection_manager() {
    if found=$(cma_roce_tos -d "$DEVICE"); then
        settle 'ToS of RDMA-CM connections that set none' "$found" "$CM_TOS" cma_roce_tos -d "$DEVICE" -t "$CM_TOS"
    else
        unread "cma_roce_tos -d $DEVICE"
    fi
}

# A ToS written here is put on every queue pair that kernel verbs set up (NCCL, Mooncake, UCX over verbs), whatever
# class it is of, but not on those that bypass them (NVSHMEM IBGDA, NCCL GIN): classes are mixed up. The plan never sets
# it; -1 takes it away. Rules for single addresses ("src_ip=...,tclass=...") are shown and left for you to remove.
forced_tos() {
    file=$SYSFS/class/infiniband/$DEVICE/tc/1/traffic_class
    if [ ! -e "$file" ]; then return 0; fi # upstream drivers have none
    settle "ToS forced on all kernel queue pairs ($file)" "$(sed -n '/tclass=/p' "$file" | tr '\n' ' ' | sed 's/ *$//')" \
        '' put "$file" -1
}

congestion_control() {
    ecn=$SYSFS/class/net/$IF/ecn
    if [ ! -d "$ecn" ]; then
        unread "$ecn (it comes with the MLNX_OFED or DOCA-OFED driver)"
        return 0
    fi
    for side in roce_np roce_rp; do
        priority=0
        for wanted in $CC_OF_PRIORITY; do
            file=$ecn/$side/enable/$priority
            settle "congestion control, $side, priority $priority" "$(contents "$file")" "$wanted" put "$file" "$wanted"
            priority=$((priority + 1))
        done
    done
    file=$ecn/roce_np/cnp_dscp
    settle 'DSCP of congestion notifications' "$(contents "$file")" "$CNP_DSCP" put "$file" "$CNP_DSCP"
    file=$ecn/roce_np/cnp_802p_prio
    settle 'priority of congestion notifications' "$(contents "$file")" "$CNP_PRIORITY" put "$file" "$CNP_PRIORITY"
}

register() { printf '%s\n' "$accl" | awk -v name="$1" '$1 == name { print ($3 ~ /^0x0*1$/) ? 1 : 0 }'; }

# The firmware must be told to support it (mlxconfig, from its next start on) before it can be switched on (mlxreg,
# until its next start). It is switched for the whole NIC: whether a class is then sprayed is the switches' decision.
adaptive_routing() {
    pci=$(cd -P "$SYSFS/class/net/$IF/device" 2>/dev/null && basename "$(pwd -P)") || pci=
    if [ -z "$pci" ]; then
        unread "the PCI address of $IF ($SYSFS/class/net/$IF/device)"
        return 0
    fi
    if ! answer=$("$MLXCONFIG" -d "$pci" query ROCE_ADAPTIVE_ROUTING_EN); then
        unread "$MLXCONFIG -d $pci query ROCE_ADAPTIVE_ROUTING_EN"
        return 0
    fi
    found=$(printf '%s\n' "$answer" | awk '/ROCE_ADAPTIVE_ROUTING_EN/ { v = $NF; gsub(/^.*\(|\)$/, "", v) } END { print v }')
    settle 'ROCE_ADAPTIVE_ROUTING_EN at the next start of the firmware' "$found" 1 \
        "$MLXCONFIG" -d "$pci" -y set ROCE_ADAPTIVE_ROUTING_EN=1
    if ! accl=$("$MLXREG" -d "$pci" --yes --reg_name ROCE_ACCL --get); then
        unread "$MLXREG -d $pci --reg_name ROCE_ACCL --get"
    elif [ "$(register adaptive_routing_forced_en_field_select)" != 1 ]; then
        tell 'adaptive_routing_forced_en: cannot be set before the firmware has started anew'
        say "    reset it (mlxfwreset -d $pci reset) or reboot, then run $PROGRAM --apply again"
    else
        settle adaptive_routing_forced_en "$(register adaptive_routing_forced_en)" 1 \
            "$MLXREG" -d "$pci" --yes --reg_name ROCE_ACCL --set adaptive_routing_forced_en=0x1
    fi
}

# ---- all of it ----

walk() {
    for PORT in $PORTS; do
        IF=${PORT%%=*}
        DEVICE=${PORT#*=}
        if [ ! -d "$SYSFS/class/net/$IF" ]; then
            unread "there is no interface $IF"
            continue
        fi
        if ! read_state; then
            unread "$QOS does not know $IF"
            continue
        fi
        trust
        dscp_map
        bandwidth
        pauses
        if [ "$RDMA" = 1 ]; then
            connection_manager
            forced_tos
            congestion_control
        fi
        if [ "$ADAPTIVE_ROUTING" = 1 ]; then adaptive_routing; fi
    done
}

finish() {
    if [ "$DIFFERENCES" -gt 0 ] || [ "$FAILURES" -gt 0 ]; then
        say "$NETWORK: $DIFFERENCES differences from the plan, $FAILURES commands failed"
        exit 1
    fi
    if [ "$UNREAD" -gt 0 ]; then exit 3; fi
    say "$NETWORK: as planned"
    exit 0
}

if [ $# -ne 1 ]; then
    usage
    exit 2
fi
case $1 in
    --check | --dry-run | --apply) MODE=${1#--} ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        complain "unknown option $1"
        usage >&2
        exit 2
        ;;
esac
find_tools
walk
if [ "$MODE" = apply ]; then
    changed=$DIFFERENCES
    if [ "$changed" -gt 0 ]; then
        MODE=check
        DIFFERENCES=0
        UNREAD=0
        say "$NETWORK: $changed differences mended; reading back"
        walk
    fi
fi
finish
