#!/usr/bin/env bash
# Take requests on this server and hand them to all units.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./layout.sh

PREFILL=$(places prefill)
DECODE=$(places decode)
export PREFILL DECODE
exec ./router.sh
