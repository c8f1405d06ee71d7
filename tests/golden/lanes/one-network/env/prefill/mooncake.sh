# mooncake for prefill ranks of one-network, as the lane plan one-network says.
# Written by fourlane lanes render --target env: change the plan, not this file. Source it before start.
# Mooncake takes its devices from its caller, not from the environment; give it
# mlx5_0,mlx5_1,mlx5_2,mlx5_3,mlx5_4,mlx5_5,mlx5_6,mlx5_7 (SGLang: --disaggregation-ib-device; vLLM: the connector's
# device_name).

# kv (ToS byte): DSCP 18 x 4, with ECT(0): switches may mark it.
export MC_IB_TC=74

# kv (service level): Ethernet priority: the priority of kv. From Mooncake of 2026 on.
export MC_IB_SL=2

# kv (GID index): the address RoCE v2 sends from, as the cluster file says.
export MC_GID_INDEX=3
