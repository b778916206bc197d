"""Processor, memory and GPUs, from files and programs made for the purpose."""

import os
import stat
import sys
from pathlib import Path

import pytest

from medals_rt.common.gpu import Gpu
from medals_rt.tools.doctor import machine
from medals_rt.tools.doctor.machine import (
    cpu_features,
    list_gpus,
    look_at_gpus,
    look_at_memory,
    look_at_processor,
)

H100 = Gpu("NVIDIA H100", "SM90", 80 * 2**30, "580.65.06, CUDA 13.0")


def fake_program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\n{text}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor : 0\nflags\t\t: fpu avx2 avx512f amx_tile amx_bf16 sse\n",
            ("avx2", "avx512f", "amx_tile", "amx_bf16"),
        ),
        ("flags : fpu sse2\n", ()),
        ("Features : fp asimd bf16\n", ("asimd", "bf16")),
        ("model name : something without features\n", None),
    ],
)
def test_features_of_the_processor(tmp_path, text, expected):
    listing = tmp_path / "cpuinfo"
    listing.write_text(text, encoding="utf-8")
    assert cpu_features(listing) == expected


def test_systems_without_such_a_list_say_so(tmp_path):
    assert cpu_features(tmp_path / "none") is None


def test_this_machine(monkeypatch, tmp_path):
    processor = look_at_processor()
    assert 1 <= processor.cores <= processor.cores_in_machine == os.cpu_count()
    (tmp_path / "memory.max").write_text(str(64 * 2**20), encoding="utf-8")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    memory = look_at_memory()
    assert 0 < memory.available_mib <= memory.total_mib
    assert memory.limit_mib == 64
    (tmp_path / "memory.max").write_text(
        str(2**60), encoding="utf-8"
    )  # more than there is limits nothing
    assert look_at_memory().limit_mib is None


def test_no_card_and_no_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "find_gpu", lambda: None)
    found = look_at_gpus()
    assert (found.gpus, found.used, found.driver, found.remark) == ((), None, None, None)


def test_gpus_are_listed_by_the_driver_s_program(monkeypatch, tmp_path):
    line = "NVIDIA H100, 81559 MiB, 9.0, 580.65.06"
    fake_program(tmp_path, f"print({line!r}); print({line!r})", monkeypatch)
    monkeypatch.setattr(machine, "find_gpu", lambda: H100)
    found = look_at_gpus()
    assert found.gpus == (line, line)
    assert found.used == "NVIDIA H100, 81,920 MiB, SM90"
    assert found.driver == H100.driver
    assert found.remark is None


def test_a_card_without_that_program(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "find_gpu", lambda: H100)
    assert look_at_gpus().gpus == ("NVIDIA H100, 81,920 MiB, SM90",)


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("import sys; sys.exit('Failed to initialize NVML')", "Failed to initialize NVML"),
        ("import sys; print('No devices'); sys.exit(9)", "No devices"),
        ("import sys; sys.exit(6)", "it ended with 6"),
    ],
)
def test_a_program_that_fails_is_quoted(monkeypatch, tmp_path, text, remark):
    fake_program(tmp_path, text, monkeypatch)
    assert list_gpus() == ((), f"nvidia-smi: {remark}")
