#!/bin/sh
# The NICs on the hpn of lab, set as the lane plan lab says.
# Written by fourlane lanes render --target nic: change the plan, not this file.

why='hpn: nothing to set: a NIC of the model ethernet is not taken to know priorities, weights or pauses (data centre bridging); the host keeps its lanes by queueing disciplines, see --target host.'
case ${1-} in
    --check | --dry-run | --apply) printf '%s\n' "$why" ;;
    *)
        printf 'usage: %s --check | --dry-run | --apply\n%s\n' "$0" "$why"
        exit 2
        ;;
esac
