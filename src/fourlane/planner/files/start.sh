#!/usr/bin/env bash
# Start this server's part of every unit it belongs to, and wait: ./start.sh [NUMBER of the server in servers.txt].
# Without a number the server looks for its own names and addresses there. Ends all of it when one part ends, or itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./layout.sh

index=${1:-}
if [ -z "$index" ]; then
  own=" $(hostname) $(hostname -f 2>/dev/null || true) $(hostname -I 2>/dev/null || true) "
  for i in "${!SERVERS[@]}"; do
    case "$own" in *" ${SERVERS[$i]} "*)
      index=$i
      break
      ;;
    esac
  done
fi
if [ -z "$index" ]; then
  echo "servers.txt: none of its addresses is this server's; add it, or say which it is: $0 NUMBER" >&2
  exit 2
fi

parts=()
mkdir -p logs run
echo $$ >"run/start-$index.pid"
# shellcheck disable=SC2154
trap 'trap - TERM INT EXIT; rm -f "run/start-$index.pid"; [ ${#parts[@]} -eq 0 ] || kill "${parts[@]}" 2>/dev/null || true; wait' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

for phase in prefill decode; do
  for ((unit = 0; unit < $(of "$phase" units); unit++)); do
    node=$((index - $(server_of "$phase" "$unit" 0)))
    if [ "$node" -lt 0 ] || [ "$node" -ge "$(of "$phase" servers)" ]; then continue; fi
    slot=$(slot_of "$phase" "$unit")
    gpus=$(of "$phase" gpus)
    visible=()
    if [ "$(of "$phase" per_server)" -gt 1 ]; then
      visible=("CUDA_VISIBLE_DEVICES=$(seq -s, $((slot * gpus)) $((slot * gpus + gpus - 1)))")
    fi
    part=(
      env "HEAD=${SERVERS[$(server_of "$phase" "$unit" 0)]}" "HOST=${SERVERS[$index]}"
      "UNIT=$unit" "NODE=$node" "SLOT=$slot" "MODEL=$MODEL" "${visible[@]}" "./$phase.sh"
    )
    if [ -n "${DRY_RUN:-}" ]; then
      echo "# server $index: $phase unit $unit, server $node of it"
      "${part[@]}"
    else
      "${part[@]}" >"logs/$phase-$unit-$node.log" 2>&1 &
      parts+=($!)
      echo "$phase unit $unit, server $node of it: process $!, logs/$phase-$unit-$node.log"
    fi
  done
done
[ -n "${DRY_RUN:-}" ] || wait -n
