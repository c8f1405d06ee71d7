# nccl for prefill ranks of h800-ft, as the lane plan h800-ft says.
# Written by fourlane lanes render --target env: change the plan, not this file. Source it before start.
# With NCCL_IB_TC set, the trafficClass of single communicators is ignored.

# collective, expert (devices): these devices and no others: = is exact.
export NCCL_IB_HCA='=mlx5_0:1,mlx5_1:1,mlx5_2:1,mlx5_3:1,mlx5_4:1,mlx5_5:1,mlx5_6:1,mlx5_7:1'

# collective, expert (GID index): the address RoCE v2 sends from, as the cluster file says.
export NCCL_IB_GID_INDEX=3

# control (interfaces): start-up and control messages alone; = is exact.
export NCCL_SOCKET_IFNAME='=dcn0'

# collective (ToS byte): DSCP 26 x 4, with ECT(0): switches may mark it.
export NCCL_IB_TC=106

# collective (service level): Ethernet priority; unset it becomes the trafficClass.
export NCCL_IB_SL=3

# control (ToS byte): clear-to-send messages go before data: DSCP 48 x 4. From NCCL 2.22.3 on.
export NCCL_IB_FIFO_TC=192

# collective (switch): packets stay in order.
export NCCL_IB_ADAPTIVE_ROUTING=0
