# gloo for decode ranks of lab, as the lane plan lab says.
# Written by fourlane lanes render --target env: change the plan, not this file. Source it before start.
# Gloo's sockets carry no mark of their own: fourlane lanes render --target host marks them.

# collective (interfaces): chooses the network; Gloo cannot mark.
export GLOO_SOCKET_IFNAME=hpn
