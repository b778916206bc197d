"""Processor, memory and GPUs of this machine."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from medals_rt.common.cgroups import CGROUP, cpu_quota, memory_limit
from medals_rt.common.environment import machine_facts
from medals_rt.common.gpu import find_gpu

_CPUINFO = Path("/proc/cpuinfo")
_CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)
"""Those of Linux's list that decide how fast convolutions are (the last four are ARM's)."""

INT8_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Any of them multiplies integers of 8 bits faster than floats."""

_SMI_TIMEOUT_S = 20
_SMI_FIELDS = "name,memory.total,compute_cap,driver_version"
_MIB = 2**20


@dataclass(frozen=True)
class Processor:
    """The processor, as far as this process may use it.

    Attributes
    ----------
    name
        As the system tells it.
    cores
        Logical cores that this process may run on.
    cores_in_machine
        All that there are.
    quota
        Whole cores that a container is given; None where nothing limits it.
    features
        Which of `_CPU_FEATURES` it has; None where the system does not tell.
    """

    name: str
    cores: int
    cores_in_machine: int
    quota: int | None
    features: tuple[str, ...] | None


@dataclass(frozen=True)
class Memory:
    """Main memory, MiB; `limit_mib` is a container's, None where there is none."""

    total_mib: int
    available_mib: int
    limit_mib: int | None


@dataclass(frozen=True)
class Graphics:
    """NVIDIA's GPUs.

    Attributes
    ----------
    gpus
        One line each.
    used
        The GPU that would be used, in a line; None where the driver finds none.
    driver
        Version of the driver, and the newest CUDA that it runs; None where there is none.
    remark
        Why `nvidia-smi` failed, if it is there and did.
    """

    gpus: tuple[str, ...]
    used: str | None
    driver: str | None
    remark: str | None


def look_at_processor() -> Processor:
    """Ask the system about the processor."""
    facts = machine_facts()
    return Processor(
        name=facts["processor"],
        cores=facts["cores"],
        cores_in_machine=os.cpu_count() or facts["cores"],
        quota=cpu_quota(CGROUP),
        features=cpu_features(_CPUINFO),
    )


def look_at_memory() -> Memory:
    """Ask the system about main memory."""
    import psutil

    memory = psutil.virtual_memory()
    limit = memory_limit(CGROUP)
    return Memory(
        total_mib=memory.total // _MIB,
        available_mib=memory.available // _MIB,
        limit_mib=None if limit is None or limit >= memory.total else limit // _MIB,
    )


def look_at_gpus() -> Graphics:
    """Ask the driver which GPU would be used, and `nvidia-smi`, if it is there, for all."""
    gpu = find_gpu()
    gpus, remark = list_gpus()
    if gpu is None:
        return Graphics(gpus, None, None, remark)
    used = f"{gpu.name}, {gpu.memory_bytes // _MIB:,} MiB, {gpu.architecture}"
    return Graphics(gpus or (used,), used, gpu.driver, remark)


def cpu_features(listing: Path) -> tuple[str, ...] | None:
    """Read the processor's features from Linux's `/proc/cpuinfo`; None where there is none."""
    try:
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            there = set(value.split())
            return tuple(feature for feature in _CPU_FEATURES if feature in there)
    return None


def list_gpus() -> tuple[tuple[str, ...], str | None]:
    """Ask `nvidia-smi` for its GPUs, and return them or the reason why it failed.

    Without the program there are neither.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None
    try:
        done = subprocess.run(
            [program, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_SMI_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi: {error}"
    said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        reason = done.stderr.strip() or " ".join(said) or f"it ended with {done.returncode}"
        return (), f"nvidia-smi: {' '.join(reason.split())}"
    return tuple(said), None
