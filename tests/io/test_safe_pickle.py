"""Pickled prompts: what NumPy writes is read, everything else is refused and nothing is run."""

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.common.errors import CaseError
from medals_rt.io.safe_pickle import MAX_BYTES, MAX_ENTRIES, read_pickled_mapping

PROMPTS = {"1": "Liver in abdominal CT", "2": "Spléen", "instance_label": 0}


def object_pickle(value: object, protocol: int = 4) -> bytes:
    """Pickle of a 0-d object array of `value`."""
    return pickle.dumps(np.array(value, dtype=object), protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_numpy_writes_is_read(protocol: int) -> None:
    assert read_pickled_mapping(object_pickle(PROMPTS, protocol)) == PROMPTS


def test_what_save_writes_is_read() -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array(PROMPTS, dtype=object), allow_pickle=True)
    file.seek(0)
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    assert read_pickled_mapping(file.read()) == PROMPTS


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u4", "i8", "u8"])
def test_numpy_integers_are_read(protocol: int, kind: str) -> None:
    mapping = {"instance_label": np.dtype(kind).type(1), np.int64(3): "Liver", 4: "Spleen"}
    assert read_pickled_mapping(object_pickle(mapping, protocol)) == {
        "instance_label": 1,
        "3": "Liver",
        "4": "Spleen",
    }


def test_both_module_names_of_numpy_are_known() -> None:
    data = object_pickle(PROMPTS)
    for old, new in ((b"numpy._core.multiarray", b"numpy.core.multiarray"),):
        if old in data:
            swapped = data.replace(
                b"\x8c" + bytes([len(old)]) + old, b"\x8c" + bytes([len(new)]) + new
            )
            swapped = swapped[:3] + struct.pack("<Q", len(swapped) - 11) + swapped[11:]
            assert read_pickled_mapping(swapped) == PROMPTS


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.reduced


def malicious(mark: Path) -> dict[str, bytes]:
    """Pickles that would write the file `mark`, or worse, were they run."""
    write = f"open({str(mark)!r}, 'w').write('run')"
    command = f"echo run > {mark}"
    calls = {
        "os.system": Calls(os.system, command),
        "eval": Calls(eval, write),
        "exec": Calls(exec, write),
        "open": Calls(open, str(mark), "w"),
        "getattr": Calls(getattr, "os", "system"),
        "numpy.load": Calls(np.load, str(mark)),
        "numpy.save": Calls(np.save, str(mark), 1),
        "numpy.fromfile": Calls(np.fromfile, str(mark)),
        "nested": {"1": {"2": Calls(os.system, command)}},
        "key": {"1": Calls(os.system, command)},
        "list": [Calls(os.system, command)],
    }
    pickles = {name: pickle.dumps(value, 4) for name, value in calls.items()}
    pickles |= {f"{name} in an array": object_pickle(value) for name, value in calls.items()}
    return pickles | {
        "protocol 0": f"cos\nsystem\n(S'{command}'\ntR.".encode(),
        "runstring": b"cnumpy.testing._private.utils\nrunstring\n(X\x04\x00\x00\x00x=1\n}tR.",
        "inst": f"(S'{command}'\nios\nsystem\n.".encode(),
        "obj": b"(cos\nsystem\nX\x02\x00\x00\x00lso.",
        "newobj": b"\x80\x02cbuiltins\neval\n)\x81.",
        "persistent": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "extension": b"\x80\x02\x82\x01.",
        "next buffer": b"\x80\x05\x97.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.",
        "stack name of a dict": b"\x80\x04}\x8c\x04loads\x93.",
        "call of a string": b"\x80\x02X\x02\x00\x00\x00os)R.",
        "call of a dtype with junk": b"\x80\x02cnumpy\ndtype\n(K\x01K\x02tRK\x01b.",
    }


@pytest.mark.parametrize("name", sorted(malicious(Path("mark"))))
def test_malicious_pickles_are_refused_and_not_run(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(CaseError) as caught:
        read_pickled_mapping(malicious(mark)[name])
    assert not mark.exists()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


HEAD = b"\x80\x04"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        HEAD,
        HEAD + b"N",
        HEAD + b"N.",
        HEAD + b"}.",
        HEAD + b"0.",
        HEAD + b"(" * 100_000 + b"t" * 100_000 + b".",
        HEAD + b")" + b"\x85" * 150_000 + b".",
        HEAD + b"K\x01\x85" + b"\x94h\x00h\x00\x86" * 40_000 + b".",
        HEAD + b"]" + b"\x94h\x00a" * 30_000 + b".",
        HEAD + b"B" + struct.pack("<I", 2**32 - 1) + b"x.",
        HEAD + b"\x8e" + struct.pack("<Q", 2**62) + b"x.",
        HEAD + b"\x8d" + struct.pack("<Q", 2**64 - 1) + b"x.",
        HEAD + b"X" + struct.pack("<I", 2**31) + b"x.",
        HEAD + b"\x8b" + struct.pack("<i", -5) + b".",
        HEAD + b"h\x07.",
        HEAD + b"j\xff\xff\xff\xff.",
        HEAD + b"e.",
        HEAD + b"}(X\x01\x00\x00\x00au.",
        HEAD + b"}]]s.",
        HEAD + b"X\x02\x00\x00\x00\xff\xfe.",
        HEAD + b"N" * 300_000,
        b"\xff" * 100,
        b"x" * (MAX_BYTES + 1),
    ],
    ids=range(25),
)
def test_damaged_and_exploding_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(CaseError):
        read_pickled_mapping(data)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        "text",
        None,
        {"1": None},
        {"1": 1.5},
        {"1": True},
        {"1": ["a"]},
        {"1": {"2": "a"}},
        {"1": b"bytes"},
        {("a",): "b"},
        {None: "b"},
        {"1": "x" * 100_000},
        {"1": 2**70},
        {1: "a", "1": "b"},
        {str(number): "a" for number in range(MAX_ENTRIES + 1)},
        {"1": np.float64(1.5)},
        {"1": np.array([1, 2])},
        {"1": np.datetime64("2020-01-01")},
    ],
    ids=range(18),
)
def test_other_content_is_refused(value: object) -> None:
    with pytest.raises(CaseError):
        read_pickled_mapping(object_pickle(value))


@pytest.mark.parametrize("array", [np.array([PROMPTS], dtype=object), np.zeros(3), np.array(5)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(CaseError):
        read_pickled_mapping(pickle.dumps(array))


def test_no_mutation_of_a_valid_pickle_does_anything_else() -> None:
    valid = object_pickle(PROMPTS)
    rng = np.random.default_rng(1)
    read = 0
    for _ in range(3000):
        data = bytearray(valid)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            found = read_pickled_mapping(bytes(data))
        except CaseError:
            continue
        read += 1
        assert all(type(key) is str for key in found)
        assert all(type(item) in {str, int} for item in found.values())
    assert read > 0, "some mutations only touch text"
