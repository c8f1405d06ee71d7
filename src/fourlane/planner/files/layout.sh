
of() { # PHASE WHAT: a figure of the layout
  local name="$1_$2"
  printf '%s' "${!name}"
}

server_of() { # PHASE UNIT NODE: the number of a server in servers.txt
  echo $(($(of "$1" first) + ($2 / $(of "$1" per_server)) * $(of "$1" servers) + $3))
}

slot_of() { # PHASE UNIT: the unit's number among those on its server
  echo $(($2 % $(of "$1" per_server)))
}

places() { # PHASE: the endpoints of all units, each address:slot
  local unit node last
  for ((unit = 0; unit < $(of "$1" units); unit++)); do
    last=0
    [ "$endpoints" = servers ] && last=$(($(of "$1" servers) - 1))
    for ((node = 0; node <= last; node++)); do
      printf '%s:%s ' "${SERVERS[$(server_of "$1" "$unit" "$node")]}" "$(slot_of "$1" "$unit")"
    done
  done
}

mapfile -t SERVERS < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' servers.txt)
if [ "${#SERVERS[@]}" -lt "$all_servers" ]; then
  echo "servers.txt: expected the addresses of $all_servers servers, one a line, found ${#SERVERS[@]}" >&2
  exit 2
fi
GATEWAY=${GATEWAY:-${SERVERS[0]}}
export GATEWAY MODEL
