"""Code is made for the processor that runs it; what it computes, `test_convolution` holds."""

import pytest

from medals_rt.runners.winograd.machine_code import (
    MachineCode,
    Storage,
    _Writer,
    machine_code,
    scratch_floats,
)

llvmlite = pytest.importorskip("llvmlite")


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [4, 8, 16])
def test_code_for_each_width_of_vectors_is_valid(storage: Storage, width: int) -> None:
    from llvmlite import binding

    binding.parse_assembly(str(_Writer(storage, width).module)).verify()


def test_it_is_compiled_once() -> None:
    first = machine_code("float32")
    assert isinstance(first, MachineCode)
    assert machine_code("float32") is first
    assert first.processor


def test_a_scratch_holds_a_strip_and_tiles() -> None:
    assert scratch_floats(8, 16, 32) > 36 * 10 * 16 + 12 * 216 * (16 + 32)
