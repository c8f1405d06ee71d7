"""What `fourlane doctor` looks at: each check is a function that returns what it found and how to mend it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import mmap
import os
import platform
import resource
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.engine.exchange.installed import DEEPEP_ABSENT, deepep_version
from fourlane.engine.kv_transfer.installed import absent
from fourlane.engine.kv_transfer.library_env import rdma_devices
from fourlane.engine.model.config import resolve_model_path
from fourlane.engine.rank_config import exchange_of
from fourlane.errors import CheckpointError, FourlaneError
from fourlane.gateway.run_dir import RunDir
from fourlane.gateway.service import listen
from fourlane.gateway.state import ModelFacts
from fourlane.gateway.tokenizer import ModelTokenizer
from fourlane.report.tables import byte_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.spec.deployment import Deployment

__all__ = ["CHECKS", "Check", "check_all"]

OLDEST_TORCH = (2, 9)
IMPORT_TIMEOUT_S = 120
_PROBE = (
    "import json, torch; count = torch.cuda.device_count();"
    "print(json.dumps([torch.__version__, [[torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i)"
    ".total_memory] for i in range(count)]]))"
)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. "fail": fourlane cannot run like this; "warn": it can, but not well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


def check_all(deployment: Deployment) -> list[Check]:
    """Run every check against a deployment, in order."""
    return [finding for check in CHECKS for finding in check(deployment)]


def _python(deployment: Deployment) -> list[Check]:
    del deployment
    found = f"{platform.python_version()} ({platform.machine()}, {platform.system()} {platform.release()})"
    if sys.platform != "linux":
        return [Check(name="python", status="warn", found=found, mend="run on Linux; elsewhere it is not tested")]
    return [Check(name="python", status="ok", found=found)]


def _native(deployment: Deployment) -> list[Check]:
    del deployment
    if importlib.util.find_spec("fourlane._native") is None:
        mend = "install from the wheel, or with a C++20 compiler: pip install ."
        return [Check(name="native core", status="fail", found="not built", mend=mend)]
    return [Check(name="native core", status="ok", found="there")]


def _torch(deployment: Deployment) -> list[Check]:
    """Import torch in a process of its own: it may fail in ways that end the process."""
    mend = "pip install 'fourlane[engine]'"
    for module in ("torch", "safetensors"):
        if importlib.util.find_spec(module) is None:
            return [Check(name="torch", status="fail", found=f"{module} is not installed", mend=mend)]
    try:
        run = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        found = f"its import did not end within {IMPORT_TIMEOUT_S} s"
        return [Check(name="torch", status="fail", found=found, mend="look at the disk, or install it anew")]
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or [f"ended with {run.returncode}"])[-1]
        return [Check(name="torch", status="fail", found=f"import torch: {last}", mend=mend)]
    version, devices = json.loads(run.stdout.strip().splitlines()[-1])
    return [_torch_version(version, mend), *_cuda(deployment, devices)]


def _torch_version(version: str, mend: str) -> Check:
    numbers = tuple(int(part) for part in version.partition("+")[0].split(".")[:2])
    if numbers < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Check(name="torch", status="fail", found=f"{version}; {oldest} or newer is needed", mend=mend)
    return Check(name="torch", status="ok", found=version)


def _cuda(deployment: Deployment, devices: list[tuple[str, int]]) -> list[Check]:
    wanting = [role for role, pool in deployment.pools().items() if pool.device.startswith("cuda")]
    if devices:
        found = "; ".join(f"{name}, {byte_text(size)}" for name, size in devices)
        return [Check(name="CUDA", status="ok", found=found)]
    if wanting:
        mend = f"install a CUDA build of torch and the driver, or --set {wanting[0]}.device=cpu"
        return [Check(name="CUDA", status="fail", found=f"no device, but {', '.join(wanting)} wants one", mend=mend)]
    return [Check(name="CUDA", status="ok", found="no device; the pools run on the CPU")]


def _cores(deployment: Deployment) -> list[Check]:
    cores = _usable_cores()
    pools = [pool for pool in deployment.pools().values() if pool.launch == "local" and pool.device == "cpu"]
    threads = sum(pool.ranks * pool.threads for pool in pools)
    found = f"{cores:g} for {threads} compute threads of {sum(pool.ranks for pool in pools)} ranks"
    if threads > cores:
        mend = "ranks share cores and wait for each other; take fewer ranks or a larger machine for speed"
        return [Check(name="cores", status="warn", found=found, mend=mend)]
    return [Check(name="cores", status="ok", found=found)]


def _usable_cores() -> float:
    """Return the cores this process may use, by affinity and by the control group's quota."""
    cores = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, int(quota) / int(period))
    return cores


def _threads(deployment: Deployment) -> list[Check]:
    del deployment
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        mend = "unset OMP_WAIT_POLICY: threads that spin take the cores that other ranks need"
        return [Check(name="OpenMP", status="warn", found="OMP_WAIT_POLICY=active", mend=mend)]
    found = f"OMP_NUM_THREADS is {os.environ.get('OMP_NUM_THREADS', 'not set')}; ranks set their own number"
    return [Check(name="OpenMP", status="ok", found=found)]


def _memory(deployment: Deployment) -> list[Check]:
    """Compare what the ranks will take with what is free; weights count twice their file, as float32 may be held."""
    available = _available_memory()
    if available is None:
        return []
    pools = [pool for pool in deployment.pools().values() if pool.launch == "local" and pool.device == "cpu"]
    cache = sum(pool.ranks * int(pool.kv_memory) for pool in pools)
    try:
        files = sum(path.stat().st_size for path in resolve_model_path(deployment.model.path).glob("*.safetensors"))
    except CheckpointError:
        return []  # the check of the model says so
    groups = sum(pool.ranks // (pool.expert_parallel or pool.ranks) for pool in pools)
    needed = cache + 2 * files * groups
    found = f"{byte_text(available)} available; KV {byte_text(cache)}, weights at most {byte_text(2 * files * groups)}"
    if needed > available:
        mend = 'lower kv_memory, take fewer groups, or weights = "bfloat16"'
        return [Check(name="memory", status="warn", found=found, mend=mend)]
    return [Check(name="memory", status="ok", found=found)]


def _available_memory() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _shared_memory(deployment: Deployment) -> list[Check]:
    shared = [pool for pool in deployment.pools().values() if (pool.expert_parallel or pool.ranks) > 1]
    exchanges = any(exchange_of(deployment, pool) == "shared_memory" for pool in shared)
    try:
        descriptor = os.memfd_create("fourlane-doctor")
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            with mmap.mmap(descriptor, mmap.PAGESIZE) as pages:
                pages[:4] = b"lane"
        finally:
            os.close(descriptor)
    except (OSError, AttributeError) as error:
        status = "fail" if exchanges or deployment.kv_transfer.transport == "shared_memory" else "warn"
        mend = "--set exchange.implementation=tcp --set kv_transfer.transport=tcp, or allow memfd_create here"
        return [Check(name="shared memory", status=status, found=f"memfd_create: {error}", mend=mend)]
    return [Check(name="shared memory", status="ok", found="memfd works")]


def _kv_libraries(deployment: Deployment) -> list[Check]:
    devices = ", ".join(rdma_devices()) or "no RDMA device"
    missing = absent()
    checks = []
    for name in ("nixl", "mooncake"):
        if name not in missing:
            checks.append(Check(name=f"KV over {name}", status="ok", found=f"installed; {devices}"))
        elif deployment.kv_transfer.transport == name:
            mend = f"{missing[name]}; or --set kv_transfer.transport=auto"
            checks.append(Check(name=f"KV over {name}", status="fail", found="not here", mend=mend))
    return checks


def _gpu_kernels(deployment: Deployment) -> list[Check]:
    version = deepep_version()
    if version is not None:
        return [Check(name="exchange by DeepEP", status="ok", found=f"deep_ep {version}")]
    if deployment.exchange.implementation == "deepep":
        mend = f"{DEEPEP_ABSENT}; or --set exchange.implementation=auto"
        return [Check(name="exchange by DeepEP", status="fail", found="not here", mend=mend)]
    return []


def _unix_sockets(deployment: Deployment) -> list[Check]:
    del deployment
    mend = "set TMPDIR to a short path on a local, writable file system"
    try:
        folder = RunDir()
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(folder.path / "doctor"))
        finally:
            folder.remove()
    except (OSError, FourlaneError) as error:
        return [Check(name="UNIX sockets", status="fail", found=f"in {tempfile.gettempdir()}: {error}", mend=mend)]
    return [Check(name="UNIX sockets", status="ok", found=f"in {folder.path.parent}")]


def _loopback(deployment: Deployment) -> list[Check]:
    del deployment
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        mend = "bring the loopback interface up: ip link set lo up"
        return [Check(name="loopback TCP", status="fail", found=str(error), mend=mend)]
    return [Check(name="loopback TCP", status="ok", found="127.0.0.1 connects")]


def _addresses(deployment: Deployment) -> list[Check]:
    checks = []
    for place in ("kv_transfer", "exchange"):
        address = getattr(deployment, place).address
        try:
            socket.create_server((address, 0), family=_family(address)).close()
        except OSError as error:
            mend = f"set {place}.address to an address of this host (ip -brief address)"
            found = f"{address}: {error.strerror or error}"
            checks.append(Check(name=f"{place}.address", status="fail", found=found, mend=mend))
        else:
            checks.append(Check(name=f"{place}.address", status="ok", found=address))
    return checks


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _port(deployment: Deployment) -> list[Check]:
    gateway = deployment.gateway
    try:
        listen(gateway.host, gateway.port).close()
    except FourlaneError as error:
        return [Check(name="port", status="fail", found=str(error).partition("; ")[0], mend="--set gateway.port=0")]
    return [Check(name="port", status="ok", found=f"{gateway.host}:{gateway.port} is free")]


def _open_files(deployment: Deployment) -> list[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 256 + 2 * deployment.gateway.max_queued_requests
    found = f"{soft} allowed, {needed} wanted for {deployment.gateway.max_queued_requests} queued requests"
    if 0 <= soft < needed:
        mend = f"ulimit -n {max(needed, 4096)}" + (
            "" if hard < 0 or hard >= needed else " (as root: the limit is hard)"
        )
        return [Check(name="open files", status="warn", found=found, mend=mend)]
    return [Check(name="open files", status="ok", found=found)]


def _process_control(deployment: Deployment) -> list[Check]:
    del deployment
    try:
        ctypes.CDLL(None).prctl  # noqa: B018 - is it there?
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        mend = "take Linux 5.3 or newer; without it, ranks of a killed gateway may live on for some seconds"
        return [Check(name="process control", status="warn", found=str(error), mend=mend)]
    return [Check(name="process control", status="ok", found="pidfd and parent-death signals")]


def _model(deployment: Deployment) -> list[Check]:
    mend = 'set model.path to a folder in the Hugging Face layout, or install the package anew for "bundled"'
    try:
        folder = resolve_model_path(deployment.model.path)
        facts = ModelFacts.read(folder, deployment)
        ModelTokenizer.read(folder)
        shards = [_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    except (FourlaneError, OSError, ValueError) as error:
        return [Check(name="model", status="fail", found=str(error), mend=mend)]
    if not shards:
        return [Check(name="model", status="fail", found=f"{folder}: no *.safetensors", mend=mend)]
    found = f"{facts.name}: {sum(shards)} tensors in {len(shards)} files, up to {facts.max_length} tokens"
    return [Check(name="model", status="ok", found=found)]


def _tensors(path: Path) -> int:
    """Return how many tensors a safetensors file's header names; the file must be as long as it says."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"{path}: no safetensors file, or cut short")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if path.stat().st_size != 8 + length + end:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected {8 + length + end}; download it again")
    return len(header)


CHECKS: tuple[Callable[[Deployment], list[Check]], ...] = (
    _python,
    _native,
    _torch,
    _model,
    _cores,
    _threads,
    _memory,
    _shared_memory,
    _kv_libraries,
    _gpu_kernels,
    _unix_sockets,
    _loopback,
    _addresses,
    _port,
    _open_files,
    _process_control,
)
