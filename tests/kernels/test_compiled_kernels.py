"""The kernels in Triton compile for GPUs that are not here; `scripts/test-kernels` runs this."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys

import pytest

# looked for, not imported: whether it interprets is decided when it is imported, in the file beside this one
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed here; scripts/test-kernels runs this", allow_module_level=True)

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fourlane.engine.exchange import triton_kernels as kernels

VARIANTS = [
    (kernels._permute, {"x_ptr": "*bf16", "rows_ptr": "*i64", "out_ptr": "*bf16"}, {"BLOCK": 1024}),
    (kernels._quantise, {"x_ptr": "*bf16", "codes_ptr": "*u8", "scale_ptr": "*fp32"}, {"GROUPS": 8, "SIZE": 128}),
    (kernels._fold, {"y_ptr": "*bf16", "place_ptr": "*i64", "weights_ptr": "*fp32", "out_ptr": "*bf16"},
     {"TOP_K": 8, "BLOCK": 1024}),
]
for kernel, pointers, constants in VARIANTS:
    signature = pointers | {"dim": "i32", "stride": "i32"} | dict.fromkeys(constants, "constexpr")
    found = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", int(sys.argv[1]), 32),
        options={"enable_fp_fusion": False},
    )
    assert len(found.asm["cubin"]) > 1000
    spilled = [line for line in found.asm["ptx"].splitlines() if ".local" in line]
    assert not spilled, spilled
    if kernel is kernels._fold:
        assert "fma." not in found.asm["ptx"]
print("compiled")
"""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_for_gpus_without_local_memory(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", inspect.cleandoc(COMPILE), str(capability)],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "compiled"
