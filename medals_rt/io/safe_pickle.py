"""Read the pickled prompts of a challenge file without executing pickles.

A pickle is a program, and its instructions may call any function. This module runs none of it: it
steps through the instructions with `pickletools`, keeps plain values (dict, list, tuple, text,
bytes, int), and where the pickle asks for a call it only writes down which function was asked for
and with what. What comes out is then compared with the one shape that NumPy writes for a 0-d
object array of a dict; everything else is refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from medals_rt.common.errors import CaseError

MAX_BYTES: Final = 4 * 2**20
_MAX_STEPS: Final = 200_000
MAX_ENTRIES: Final = 10_000
MAX_TEXT: Final = 10_000

_ARRAYS: Final = frozenset({"numpy.core.multiarray", "numpy._core.multiarray"})
_NAMES: Final = frozenset(
    {(module, name) for module in _ARRAYS for name in ("_reconstruct", "scalar")}
    | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
)
_INTEGERS: Final = frozenset({"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"})


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names; never looked up."""

    module: str
    name: str


@dataclass
class _Call:
    """A call that the pickle asks for, and the state it sets afterwards; never made."""

    function: _Name
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass
class _Machine:
    """The stack, the marks and the memo of a pickle."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor:
            raise _damaged("its stack runs empty")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise _damaged("a mark is missing")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type[Any]) -> Any:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor or type(self.stack[-1]) is not kind:
            raise _damaged(f"a {kind.__name__} was expected")
        return self.stack[-1]


def read_pickled_mapping(data: bytes) -> dict[str, int | str]:
    """Read a 0-d object array of a dict with text keys and text or integer values.

    Parameters
    ----------
    data
        The pickle, as NumPy wrote it into an `.npy` file after the header.

    Raises
    ------
    CaseError
        If it holds anything else, names any other function or class, or is too large.
    """
    if len(data) > MAX_BYTES:
        raise CaseError(
            f"text_prompts has {len(data):,} bytes; at most {MAX_BYTES:,} are read",
            code="prompts-too-large",
        )
    mapping = _array_content(_run(data))
    if type(mapping) is not dict:
        raise CaseError(
            f"text_prompts holds a {_kind(mapping)}; it has to be a dict of label to sentence",
            code="prompts-form",
        )
    if len(mapping) > MAX_ENTRIES:
        raise CaseError(
            f"text_prompts has {len(mapping):,} entries; at most {MAX_ENTRIES:,} are read",
            code="too-many-prompts",
        )
    return {key: _plain_value(value) for key, value in mapping.items()}


def _run(data: bytes) -> Any:
    """Step through a pickle and return the value it describes, calls left unmade."""
    machine = _Machine()
    try:
        for opcode, argument, _ in islice(pickletools.genops(data), _MAX_STEPS):
            if opcode.name == "STOP":
                return machine.pop()
            _step(machine, opcode.name, argument)
    except CaseError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise _damaged(str(error) or type(error).__name__) from error
    raise _damaged("it never ends")


_VALUES: Final = frozenset(
    {
        "BININT", "BININT1", "BININT2", "LONG1",
        "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
        "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    }
)  # fmt: skip
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _step(machine: _Machine, name: str, argument: Any) -> None:
    """Do one instruction; those not named here are refused."""
    if name in {"PROTO", "FRAME"}:
        return
    if name in _VALUES:
        machine.stack.append(argument)
    elif name in _CONSTANTS:
        machine.stack.append(_CONSTANTS[name])
    elif name in _TUPLES:
        items = [machine.pop() for _ in range(_TUPLES[name])]
        machine.stack.append(tuple(reversed(items)))
    elif name in _OTHERS:
        _OTHERS[name](machine, argument)
    else:
        raise CaseError(
            f"text_prompts holds a pickle with {name}, which isn't read; {_ADVICE}",
            code="pickle-instruction-unknown",
        )


def _memoize(machine: _Machine, argument: Any) -> None:
    if not machine.stack:
        raise _damaged("nothing to remember")
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _set_items(machine: _Machine, _: Any) -> None:
    items = machine.pop_to_mark()
    if len(items) % 2:
        raise _damaged("a key has no value")
    _store(machine.top(dict), items[::2], items[1::2])


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _store(machine.top(dict), [key], [value])


def _store(target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    for key, value in zip(keys, values, strict=True):
        plain = _plain_key(key)
        if plain in target:
            raise CaseError(
                f"text_prompts has the key {plain[:40]!r} twice; keep one of them",
                code="label-repeated",
            )
        target[plain] = value


def _name(machine: _Machine, argument: Any) -> None:
    if argument is None:
        name, module = machine.pop(), machine.pop()
    else:
        module, _, name = str(argument).partition(" ")
    if (module, name) not in _NAMES:
        raise CaseError(
            f"text_prompts names {str(module)[:60]}.{str(name)[:60]}, which isn't allowed in a "
            f"case file; {_ADVICE}",
            code="pickle-name-forbidden",
        )
    machine.stack.append(_Name(module, name))


def _call(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    if type(function) is not _Name or type(arguments) is not tuple:
        raise _damaged("a call isn't of a known function")
    machine.stack.append(_Call(function, arguments))


def _set_state(machine: _Machine, _: Any) -> None:
    state = machine.pop()
    machine.top(_Call).state = state


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.top(list).append(value)


_OTHERS: Final = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "APPENDS": lambda machine, _: _extend(machine),
    "APPEND": _append,
    "SETITEMS": _set_items,
    "SETITEM": _set_item,
    "MEMOIZE": _memoize,
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "GLOBAL": _name,
    "STACK_GLOBAL": _name,
    "REDUCE": _call,
    "BUILD": _set_state,
}


def _extend(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.top(list).extend(items)


def _array_content(value: Any) -> Any:
    """Take the one item out of what NumPy writes for a 0-d object array."""
    if type(value) is not _Call or value.function.name != "_reconstruct":
        raise CaseError(
            f"text_prompts holds a {_kind(value)}; it has to be a 0-d object array",
            code="prompts-form",
        )
    state = value.state
    # NumPy's own state: version, shape, dtype, whether Fortran order, list of items.
    if type(state) is not tuple or len(state) != 5:
        raise _damaged("an array without content")
    _, shape, dtype, _, items = state
    if shape != () or _dtype_code(dtype)[-1:] != "O" or type(items) is not list or len(items) != 1:
        raise CaseError(
            "text_prompts isn't a 0-d object array of one dict; write it so", code="prompts-form"
        )
    return items[0]


def _dtype_code(value: Any) -> str:
    """Type code of a pickled dtype, such as "O8" cut to "O" or "i8"."""
    if type(value) is not _Call or (value.function.module, value.function.name) != (
        "numpy",
        "dtype",
    ):
        return ""
    code = value.arguments[0] if value.arguments else None
    if type(code) is not str:
        return ""
    return "O" if code in {"O", "O8", "O4"} else code


def _plain_key(key: Any) -> str:
    if type(key) is str and len(key) <= MAX_TEXT:
        return key
    number = _plain_integer(key)
    if number is None:
        raise CaseError(
            f"text_prompts has a {_kind(key)} as key; keys are label values as text",
            code="label-invalid",
        )
    return str(number)


def _plain_value(value: Any) -> int | str:
    if type(value) is str:
        if len(value) > MAX_TEXT:
            raise CaseError(
                f"text_prompts has a text of {len(value):,} characters; shorten it",
                code="prompt-too-long",
            )
        return value
    number = _plain_integer(value)
    if number is None:
        raise CaseError(
            f"text_prompts has a {_kind(value)} as value; text and whole numbers are read",
            code="prompt-not-text",
        )
    return number


def _plain_integer(value: Any) -> int | None:
    """Plain int of an int or a pickled NumPy integer; `None` for anything else."""
    if type(value) is int:
        return value if abs(value) < 2**63 else None
    if type(value) is not _Call or value.function.name != "scalar" or len(value.arguments) != 2:
        return None
    dtype, raw = value.arguments
    code = _dtype_code(dtype)
    data = _raw_bytes(raw)
    if code not in _INTEGERS or data is None or len(data) != int(code[1]):
        return None
    return int.from_bytes(data, "little", signed=code[0] == "i")


def _raw_bytes(raw: Any) -> bytes | None:
    """Bytes of a scalar; protocol 2 wrote them as text to encode in Latin-1."""
    if type(raw) is bytes:
        return raw
    encoded = type(raw) is _Call and raw.function == _Name("_codecs", "encode")
    if not encoded or len(raw.arguments) != 2 or raw.arguments[1] != "latin1":
        return None
    text = raw.arguments[0]
    if type(text) is not str or len(text) > 8:
        return None
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        return None


_ADVICE: Final = "write the prompts to a prompts.json and give that instead"


def _damaged(detail: str) -> CaseError:
    return CaseError(
        f"text_prompts holds a damaged or unusual pickle ({detail[:80]}); {_ADVICE}",
        code="pickle-damaged",
    )


def _kind(value: Any) -> str:
    if type(value) is _Call:
        return f"{value.function.module}.{value.function.name}"
    return type(value).__name__
