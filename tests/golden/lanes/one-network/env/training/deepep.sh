# deepep for training and weight updates, which move no KV cache of one-network, as the lane plan one-network says.
# Written by fourlane lanes render --target env: change the plan, not this file. Source it before start.
# EP_OVERRIDE_RDMA_SL is not set: on Ethernet DeepEP V2 hands it to NCCL as a ToS byte, so that a service level of 5
# is DSCP 1. Before NCCL 2.30.7 NCCL_IB_TC holds for DeepEP too: its traffic then shares the collectives' class.

# expert (ToS byte): DSCP 46 x 4, without ECN bits: switches cannot mark it. From NCCL 2.30.7 on.
export NCCL_GIN_IB_TC=184

# expert (devices): whose properties are asked for; mlx5_0 otherwise. From DeepEP V2 on.
export EP_NIC_NAME=mlx5_0
