# ucx for prefill ranks of one-network, as the lane plan one-network says.
# Written by fourlane lanes render --target env: change the plan, not this file. Source it before start.
# UCX's help calls UCX_IB_TRAFFIC_CLASS a DSCP; it is the ToS byte, 106 (DSCP 26) if unset. Set it on both ends:
# some versions mark one direction only (UCX issue 10325).

# kv (devices): these devices and no others; NIXL goes by it too.
export UCX_NET_DEVICES=mlx5_0:1,mlx5_1:1,mlx5_2:1,mlx5_3:1,mlx5_4:1,mlx5_5:1,mlx5_6:1,mlx5_7:1

# kv (ToS byte): DSCP 18 x 4, with ECT(0): switches may mark it.
export UCX_IB_TRAFFIC_CLASS=74

# kv (service level): Ethernet priority: the priority of kv.
export UCX_IB_SL=2

# kv (GID index): the address RoCE v2 sends from, as the cluster file says.
export UCX_IB_GID_INDEX=3
