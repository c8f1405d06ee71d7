#!/usr/bin/env bash
# Start every server of servers.txt over ssh, then take requests here. This folder must be in the same place on all of
# them. SSH: what to call in place of ssh. Stop everything with ./stop-all.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./layout.sh

mkdir -p logs run
for ((i = 0; i < all_servers; i++)); do
  ${SSH:-ssh -o BatchMode=yes} "${SERVERS[$i]}" \
    "cd '$PWD' && mkdir -p logs && MODEL='$MODEL' GATEWAY='$GATEWAY' nohup ./start.sh $i >logs/start-$i.log 2>&1 </dev/null &"
done
exec ./start-router.sh
