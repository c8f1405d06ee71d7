#!/usr/bin/env bash
# Stop what ./start.sh began on every server of servers.txt. SSH: what to call in place of ssh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./layout.sh

for ((i = 0; i < all_servers; i++)); do
  ${SSH:-ssh -o BatchMode=yes} "${SERVERS[$i]}" "cd '$PWD' && [ ! -f run/start-$i.pid ] || kill \$(cat run/start-$i.pid)"
done
