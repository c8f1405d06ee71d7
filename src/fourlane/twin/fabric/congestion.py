"""Published parameters of DCQCN: three sets, each with the marking thresholds that belong to it where there are any.

They differ by orders of magnitude, and so does what they do: the paper's are for 40 Gb/s, the NIC's recover slowly
on purpose, the simulations' are tuned to 400 Gb/s. What the fields mean is said in
`fourlane.twin.fabric.reference.rate_control`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fourlane.twin.fabric.compiled import NEVER, Dcqcn

__all__ = ["NIC", "PAPER", "PUBLISHED", "SIMULATIONS", "DcqcnParameters", "Marking"]

_US = 1_000_000
_NO_BYTE_COUNTER = NEVER >> 18
"""More bytes than any flow has."""


@dataclass(frozen=True)
class Marking:
    """When a queue marks: from Kmin bytes on with a chance that rises to Pmax at Kmax, then always."""

    kmin: int
    kmax: int
    pmax: float


@dataclass(frozen=True)
class DcqcnParameters:
    """A published set: of the NICs, of the switches (None where the source leaves them open), and where it is from."""

    dcqcn: Dcqcn
    marking: Marking | None
    source: str


PAPER = DcqcnParameters(
    dcqcn=Dcqcn(
        g=1 / 256,
        alpha0=1.0,
        alpha_period=55 * _US,
        cnp_interval=50 * _US,
        decrease_gate=0,
        max_decrease=0.5,  # of 1 - alpha / 2, which is never less: no bound beyond it
        timer=55 * _US,
        byte_counter=10_000_000,
        fast_rounds=5,
        rate_ai=40e6,
        rate_hai=400e6,  # not in the paper: ten times R_AI, as QCN (IEEE 802.1Qau) has it
        min_rate=1e6,  # not in the paper: the NIC's
        clamp=1,
    ),
    marking=Marking(kmin=5_000, kmax=200_000, pmax=0.01),
    source="Zhu et al., Congestion Control for Large-Scale RDMA Deployments, SIGCOMM 2015: 40 Gb/s",
)

NIC = DcqcnParameters(
    dcqcn=Dcqcn(
        g=5 / 1024,  # dce_tcp_g 1019: alpha keeps 1019 of 1024 parts
        alpha0=1023 / 1024,  # initial_alpha_value
        alpha_period=1 * _US,  # dce_tcp_rtt
        cnp_interval=4 * _US,  # min_time_between_cnps
        decrease_gate=4 * _US,  # rate_reduce_monitor_period
        max_decrease=0.5,  # rpg_min_dec_fac 50 %
        timer=300 * _US,  # rpg_time_reset
        byte_counter=32_767,  # rpg_byte_reset, read as bytes
        fast_rounds=1,  # rpg_threshold
        rate_ai=5e6,  # rpg_ai_rate
        rate_hai=50e6,  # rpg_hai_rate
        min_rate=1e6,  # rpg_min_rate
        clamp=0,  # clamp_tgt_rate 0, clamp_tgt_rate_after_time_inc 1
    ),
    marking=None,  # set at the switch
    source="NVIDIA DOCA SDK 3.4, DCQCN CC Parameters (ConnectX-4 and later); Mellanox community DOC-2790",
)

SIMULATIONS = DcqcnParameters(
    dcqcn=Dcqcn(
        g=1 / 256,
        alpha0=1.0,
        alpha_period=1 * _US,
        cnp_interval=0,  # every acknowledgement echoes its packet's mark
        decrease_gate=4 * _US,
        max_decrease=0.5,
        timer=900 * _US,
        byte_counter=_NO_BYTE_COUNTER,  # not implemented there
        fast_rounds=1,
        rate_ai=50e6,
        rate_hai=100e6,
        min_rate=100e6,
        clamp=0,
    ),
    marking=Marking(kmin=800_000, kmax=3_200_000, pmax=0.2),
    source="HPCC (Li et al., SIGCOMM 2019) and SimAI, configuration of their ns-3 models: 400 Gb/s",
)

PUBLISHED = {"paper": PAPER, "nic": NIC, "simulations": SIMULATIONS}
"""The sets by name."""
