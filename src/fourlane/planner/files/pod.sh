
of() { # PHASE WHAT: a figure of the layout
  local name="$1_$2"
  printf '%s' "${!name}"
}

slot_of() { # PHASE UNIT: units smaller than a server may find themselves beside any other, so each has a slot of its own
  if [ "$(of "$1" per_server)" -gt 1 ]; then echo "$2"; else echo 0; fi
}

pod_of() { # PHASE UNIT NODE: the name of a pod
  echo "$service-$1-$(($2 * $(of "$1" servers) + $3)).$service-$1"
}

places() { # PHASE: the endpoints of all units, each address:slot
  local unit node last
  for ((unit = 0; unit < $(of "$1" units); unit++)); do
    last=0
    [ "$endpoints" = servers ] && last=$(($(of "$1" servers) - 1))
    for ((node = 0; node <= last; node++)); do
      printf '%s:%s ' "$(pod_of "$1" "$unit" "$node")" "$(slot_of "$1" "$unit")"
    done
  done
}

export MODEL
export GATEWAY=$service-router
cd "$(dirname "${BASH_SOURCE[0]}")"
part=$1
if [ "$part" = router ]; then
  PREFILL=$(places prefill)
  DECODE=$(places decode)
  export PREFILL DECODE
  exec ./router.sh
fi
UNIT=$((POD_INDEX / $(of "$part" servers)))
NODE=$((POD_INDEX % $(of "$part" servers)))
SLOT=$(slot_of "$part" "$UNIT")
HEAD=$(pod_of "$part" "$UNIT" 0)
export UNIT NODE SLOT HEAD
exec "./$part.sh"
