"""Machine code for Winograd convolutions, written for this processor by LLVM.

NumPy can only say these loops with a pass over memory for each of their steps, and a compiled wheel
would have to choose a processor's vectors beforehand. What is made here are vectors over channels,
a row of tiles at a time, which stay in the processor's cache between the steps.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from medals_rt.common.optional_deps import import_optional
from medals_rt.runners.winograd.choice import processor_features
from medals_rt.runners.winograd.transforms import (
    INPUT_TRANSFORM,
    OUTPUT_TRANSFORM,
    OUTPUTS,
    POINTS,
    PRODUCTS,
    Matrix,
)

Storage = Literal["float32", "bfloat16"]
"""How values lie in memory between convolutions; they are computed in float32."""

CHANNEL_STEP: Final = 16
"""Channels of a strip, and those of outputs, are multiples of it."""

_TILE_PADDING: Final = 16
"""Floats between tiles, or tiles of 64 and 128 channels meet in the same few lines of the cache."""

_TILES_AT_ONCE: Final = 12
"""Tiles whose transforms are made before they are multiplied."""

_SOURCE_FIELDS: Final = 5
_LINE_BYTES: Final = 64
_FAST: Final = ("reassoc", "contract", "nsz")
# what lies where in a task's description, in units of 8 bytes
(
    _HEIGHT,
    _WIDTH,
    _DEPTH,
    _CHANNELS,  # of a strip
    _USED,  # those of the sources
    _OUTPUTS,
    _SOURCES,
    _FACTORS,
    _BIAS,
    _RESULT,
    FIRST_SOURCE,
) = range(11)
_VALUES, _WIDE, _SCALE, _SHIFT, _SLOPE = range(_SOURCE_FIELDS)


def scratch_floats(depth: int, channels: int, outputs: int) -> int:
    """How many floats a thread works in: a strip, and the tiles before and after the products."""
    tiles = _TILES_AT_ONCE * PRODUCTS * (channels + outputs) + 2 * _TILES_AT_ONCE * _TILE_PADDING
    return POINTS * POINTS * (depth + 2) * channels + tiles


@dataclass(frozen=True)
class MachineCode:
    """Compiled functions; they don't hold Python's lock while they run.

    Attributes
    ----------
    convolve
        ``(description, tile_h, first_tile_w, end_tile_w, scratch, sums)``: a row of tiles along W.
        `sums` `(2, K)` float64 grows by the sums of outputs and of their squares.
    measure
        ``(values, voxels, channels, sums)``: the same of what lies in memory.
    activate
        ``(values, to, voxels, channels, scale, shift, slope)``: scale, shift and activate; `to` may
        be `values`.
    average
        ``(values, runs, voxels, channels, scale, shift, slope, to)``: means of so many voxels, one
        after another in memory, as `activate` would leave them; `to` `(runs, channels)` float32.
    processor
        What the code is for.
    """

    convolve: Any
    measure: Any
    activate: Any
    average: Any
    processor: str
    _engine: Any  # owns the memory of the code


@cache
def machine_code(storage: Storage) -> MachineCode:
    """Compile for this processor; takes about a quarter of a second, once a process."""
    import_optional("llvmlite", "Winograd convolutions")
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = processor_features()
    width = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
    flags = ",".join(("+" if on else "-") + name for name, on in sorted(features.items()))
    if width == 16:
        flags += ",-prefer-256-bit"
    processor = binding.get_host_cpu_name()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=processor, features=flags, opt=3)
    module = binding.parse_assembly(str(_Writer(storage, width).module))
    module.verify()
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_unrolling = False  # loops of fixed length are written out where that serves
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    convolve = ctypes.CFUNCTYPE(None, pointer, integer, integer, integer, pointer, pointer)
    measure = ctypes.CFUNCTYPE(None, pointer, integer, integer, pointer)
    activate = ctypes.CFUNCTYPE(None, pointer, pointer, integer, integer, *[pointer] * 3)
    average = ctypes.CFUNCTYPE(None, pointer, integer, integer, integer, *[pointer] * 4)
    return MachineCode(
        convolve(engine.get_function_address("convolve")),
        measure(engine.get_function_address("measure")),
        activate(engine.get_function_address("activate")),
        average(engine.get_function_address("average")),
        processor,
        engine,
    )


class _Function:
    """A function being written: arithmetic on addresses, and loops, in few words.

    Unless it works `in_place`, none of its arguments' memory overlaps.
    """

    def __init__(
        self,
        module: Any,
        name: str,
        arguments: Sequence[Any],
        ir: Any,
        *,
        in_place: bool = False,
    ) -> None:
        self.ir = ir
        kind = ir.FunctionType(ir.VoidType(), arguments)
        self.function = ir.Function(module, kind, name)
        self.function.attributes.add("nounwind")
        for argument in self.function.args:
            if isinstance(argument.type, ir.PointerType) and not in_place:
                argument.add_attribute("noalias")
        self.build = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.integer = ir.IntType(64)

    def number(self, value: Any) -> Any:
        """Return a Python number as a constant; a value as it is."""
        return self.ir.Constant(self.integer, value) if isinstance(value, int) else value

    def add(self, *values: Any) -> Any:
        """Add integers."""
        total = self.number(values[0])
        for value in values[1:]:
            total = self.build.add(total, self.number(value))
        return total

    def times(self, *values: Any) -> Any:
        """Multiply integers."""
        product = self.number(values[0])
        for value in values[1:]:
            product = self.build.mul(product, self.number(value))
        return product

    def at(self, base: Any, *offsets: Any) -> Any:
        """Return the address `base` plus the sum of offsets, in elements."""
        return self.build.gep(base, [self.add(*offsets)])

    def load(self, address: Any, kind: Any) -> Any:
        """Load a value of a type from an address of its elements' alignment."""
        return self.build.load(self.build.bitcast(address, kind.as_pointer()), align=2)

    def store(self, value: Any, address: Any) -> None:
        """Store a value."""
        self.build.store(value, self.build.bitcast(address, value.type.as_pointer()), align=2)

    @contextmanager
    def loop(self, start: Any, end: Any, step: Any = 1) -> Iterator[Any]:
        """Write a loop over ``range(start, end, step)``."""
        build, function = self.build, self.function
        before = build.block
        head = function.append_basic_block("head")
        body = function.append_basic_block("body")
        after = function.append_basic_block("after")
        build.branch(head)
        build.position_at_end(head)
        index = build.phi(self.integer)
        index.add_incoming(self.number(start), before)
        build.cbranch(build.icmp_signed("<", index, self.number(end)), body, after)
        build.position_at_end(body)
        yield index
        index.add_incoming(self.add(index, step), build.block)
        build.branch(head)
        build.position_at_end(after)

    def end(self) -> Any:
        """Finish it."""
        self.build.ret_void()
        return self.function


class _Writer:
    """Writes the module.

    Parameters
    ----------
    storage
        How values lie in memory.
    width
        Floats in a vector.
    """

    def __init__(self, storage: Storage, width: int) -> None:
        from llvmlite import ir

        self.ir = ir
        self.storage = storage
        self.width = width
        # accumulators, one row of factors and one input at a time must fit the registers
        self.product_tiles = 6
        self.product_vectors = 4 if width == 16 else 2
        self.float = ir.FloatType()
        self.double = ir.DoubleType()
        self.integer = ir.IntType(64)
        self.stored = self.float if storage == "float32" else ir.IntType(16)
        self.vector = ir.VectorType(self.float, width)
        self.module = ir.Module("winograd")
        load = self._load_row()
        forward, multiply, back = self._forward(), self._multiply(), self._back()
        self._convolve(load, forward, multiply, back)
        self._measure()
        self._activate()
        self._average()

    # -- values ---------------------------------------------------------------------------------

    def _constant(self, value: float) -> Any:
        return self.ir.Constant(self.vector, [float(value)] * self.width)

    def _unpack(self, f: _Function, values: Any) -> Any:
        """Return stored values, one or a vector, as float32."""
        if self.storage == "float32":
            return values
        wide: Any = self.ir.IntType(32)
        kind: Any = self.float
        sixteen = self.ir.Constant(wide, 16)
        if isinstance(values.type, self.ir.VectorType):
            wide = self.ir.VectorType(wide, self.width)
            kind = self.vector
            sixteen = self.ir.Constant(wide, [16] * self.width)
        return f.build.bitcast(f.build.shl(f.build.zext(values, wide), sixteen), kind)

    def _pack(self, f: _Function, values: Any) -> Any:
        """Return a vector of float32 as it is stored; bfloat16 by rounding to nearest even."""
        if self.storage == "float32":
            return values
        wide = self.ir.VectorType(self.ir.IntType(32), self.width)
        narrow = self.ir.VectorType(self.ir.IntType(16), self.width)

        def every(value: int) -> Any:
            return self.ir.Constant(wide, [value] * self.width)

        bits = f.build.bitcast(values, wide)
        odd = f.build.and_(f.build.lshr(bits, every(16)), every(1))
        rounded = f.build.add(f.build.add(bits, odd), every(0x7FFF))
        return f.build.trunc(f.build.lshr(rounded, every(16)), narrow)

    def _combine(self, f: _Function, matrix: Matrix, values: Sequence[Any]) -> list[Any]:
        """Multiply a matrix with a column of vectors."""
        found = []
        for row in matrix:
            total = None
            for factor, value in zip(row, values, strict=True):
                if factor == 0:
                    continue
                term = value
                if abs(factor) != 1:
                    term = f.build.fmul(value, self._constant(float(abs(factor))), flags=_FAST)
                if total is None:
                    total = term if factor > 0 else f.build.fneg(term, flags=_FAST)
                elif factor > 0:
                    total = f.build.fadd(total, term, flags=_FAST)
                else:
                    total = f.build.fsub(total, term, flags=_FAST)
            found.append(total)
        return found

    def _activated(self, f: _Function, value: Any, factor: Any, offset: Any, slope: Any) -> Any:
        """Scale, shift, and multiply what is negative by the slope."""
        b = f.build
        moved = b.fadd(b.fmul(value, factor, flags=_FAST), offset, flags=_FAST)
        negative = b.fcmp_ordered("<", moved, self.ir.Constant(moved.type, None))
        return b.select(negative, b.fmul(moved, slope, flags=_FAST), moved)

    def _every_lane(self, f: _Function, address: Any) -> tuple[Any, Any]:
        """Load a float; return it, and a vector of it."""
        value = f.build.load(address)
        empty = self.ir.Constant(self.vector, self.ir.Undefined)
        index = self.ir.IntType(32)
        first = f.build.insert_element(empty, value, self.ir.Constant(index, 0))
        lanes = self.ir.Constant(self.ir.VectorType(index, self.width), [0] * self.width)
        return value, f.build.shuffle_vector(first, first, lanes)

    def _room(self, f: _Function, count: int) -> Any:
        """Return vectors on the stack."""
        room = f.build.alloca(self.vector, count)
        room.align = _LINE_BYTES
        return room

    # -- functions ------------------------------------------------------------------------------

    def _load_row(self) -> Any:
        """``(values, D, wide, scale, shift, slope, to, channels)``: a row of voxels to a strip."""
        floats, stored = self.float.as_pointer(), self.stored.as_pointer()
        i = self.integer
        f = _Function(
            self.module,
            "load_row",
            [stored, i, i, floats, floats, floats, floats, i],
            self.ir,
        )
        values, depth, wide, scale, shift, slope, to, channels = f.function.args
        b = f.build
        one_slope, slopes = self._every_lane(f, slope)
        whole = f.times(b.sdiv(wide, f.number(self.width)), self.width)

        with f.loop(0, depth) as d:
            here, there = f.times(d, wide), f.times(d, channels)
            with f.loop(0, whole, self.width) as c:
                place = f.at(values, here, c)
                found = self._read_activated(f, place, (scale, shift, slopes), c)
                f.store(found, f.at(to, there, c))
            with f.loop(whole, wide) as c:
                value = self._unpack(f, b.load(f.at(values, here, c)))
                factor, offset = b.load(f.at(scale, c)), b.load(f.at(shift, c))
                b.store(self._activated(f, value, factor, offset, one_slope), f.at(to, there, c))
        return f.end()

    def _forward(self) -> Any:
        """``(strip, columns[6], D + 2, channels, tile, tiles, to)``: tiles to be multiplied."""
        floats, i = self.float.as_pointer(), self.integer
        f = _Function(self.module, "forward", [floats, i.as_pointer(), i, i, i, i, floats], self.ir)
        strip, columns, rows, channels, first, tiles, to = f.function.args
        b, width = f.build, self.width
        one, two = self._room(f, PRODUCTS), self._room(f, POINTS * POINTS)
        row = f.times(rows, channels)
        with f.loop(0, tiles) as tile:
            voxel = f.times(f.add(first, tile), OUTPUTS, channels)
            place = f.times(tile, f.add(f.times(PRODUCTS, channels), _TILE_PADDING))
            with f.loop(0, channels, width) as c:
                with f.loop(0, POINTS) as w:
                    column = b.load(f.at(columns, w))
                    with f.loop(0, POINTS) as d:
                        start = f.add(column, voxel, c, f.times(d, channels))
                        taken = [
                            f.load(f.at(strip, start, f.times(h, row)), self.vector)
                            for h in range(POINTS)
                        ]
                        for h, value in enumerate(self._combine(f, INPUT_TRANSFORM, taken)):
                            f.build.store(
                                value, f.at(one, h * POINTS * POINTS, f.times(w, POINTS), d)
                            )
                with f.loop(0, POINTS) as h:
                    plane = f.times(h, POINTS * POINTS)
                    with f.loop(0, POINTS) as d:
                        taken = [b.load(f.at(one, plane, w * POINTS, d)) for w in range(POINTS)]
                        for w, value in enumerate(self._combine(f, INPUT_TRANSFORM, taken)):
                            b.store(value, f.at(two, w * POINTS, d))
                    with f.loop(0, POINTS) as w:
                        line = f.times(w, POINTS)
                        taken = [b.load(f.at(two, line, d)) for d in range(POINTS)]
                        target = f.add(place, c, f.times(f.add(plane, line), channels))
                        for d, value in enumerate(self._combine(f, INPUT_TRANSFORM, taken)):
                            f.store(value, f.at(to, target, f.times(d, channels)))
        return f.end()

    def _multiply(self) -> Any:
        """``(tiles, factors, channels, used, outputs, count, to)``: 216 products of matrices."""
        floats, i = self.float.as_pointer(), self.integer
        f = _Function(self.module, "multiply", [floats, floats, i, i, i, i, floats], self.ir)
        tiles, factors, channels, used, outputs, count, to = f.function.args
        b, width = f.build, self.width
        step_in = f.add(f.times(PRODUCTS, channels), _TILE_PADDING)
        step_out = f.add(f.times(PRODUCTS, outputs), _TILE_PADDING)

        def block(product: Any, first: Any, height: int, k: Any, vectors: int) -> None:
            """Write products of a few tiles and outputs, which stay in registers over channels."""
            weights = f.add(f.times(product, channels, outputs), k)
            rows = [
                f.add(f.times(f.add(first, t), step_in), f.times(product, channels))
                for t in range(height)
            ]
            before = b.block
            head = f.function.append_basic_block("sum")
            after = f.function.append_basic_block("summed")
            b.branch(head)
            b.position_at_end(head)
            c = b.phi(self.integer)
            c.add_incoming(f.number(0), before)
            totals = []
            for _ in range(height * vectors):
                total = b.phi(self.vector)
                total.add_incoming(self._constant(0.0), before)
                totals.append(total)
            line = f.add(weights, f.times(c, outputs))
            loaded = [f.load(f.at(factors, line, v * width), self.vector) for v in range(vectors)]
            summed = []
            for t in range(height):
                _, every = self._every_lane(f, f.at(tiles, rows[t], c))
                for v in range(vectors):
                    term = b.fmul(every, loaded[v], flags=_FAST)
                    summed.append(b.fadd(totals[t * vectors + v], term, flags=_FAST))
            following = f.add(c, 1)
            c.add_incoming(following, b.block)
            for total, value in zip(totals, summed, strict=True):
                total.add_incoming(value, b.block)
            b.cbranch(b.icmp_signed("<", following, used), head, after)
            b.position_at_end(after)
            for t in range(height):
                target = f.add(f.times(f.add(first, t), step_out), f.times(product, outputs), k)
                for v in range(vectors):
                    f.store(summed[t * vectors + v], f.at(to, target, v * width))

        broad = self.product_vectors * width
        wide_end = f.times(b.sdiv(outputs, f.number(broad)), broad)
        tall_end = f.times(b.sdiv(count, f.number(self.product_tiles)), self.product_tiles)
        with f.loop(0, PRODUCTS) as product:
            for start, end, vectors in (
                (0, wide_end, self.product_vectors),
                (wide_end, outputs, 1),
            ):
                with f.loop(start, end, vectors * width) as k:
                    with f.loop(0, tall_end, self.product_tiles) as first:
                        block(product, first, self.product_tiles, k, vectors)
                    with f.loop(tall_end, count) as first:
                        block(product, first, 1, k, vectors)
        return f.end()

    def _back(self) -> Any:
        """``(products, outputs, tiles, bias, to, step_h, step_w, sums)``: products to outputs."""
        floats, i = self.float.as_pointer(), self.integer
        arguments = [floats, i, i, floats, self.stored.as_pointer(), i, i]
        f = _Function(self.module, "back", [*arguments, self.double.as_pointer()], self.ir)
        products, outputs, tiles, bias, to, step_h, step_w, sums = f.function.args
        b, width = f.build, self.width
        one = self._room(f, OUTPUTS * POINTS * POINTS)
        two = self._room(f, OUTPUTS * POINTS)
        both = self._room(f, 2)
        zero = self.ir.Constant(self.vector, None)
        with f.loop(0, tiles) as tile:
            place = f.times(tile, f.add(f.times(PRODUCTS, outputs), _TILE_PADDING))
            voxel = f.times(tile, OUTPUTS, outputs)
            with f.loop(0, outputs, width) as k:
                offset = f.load(f.at(bias, k), self.vector)
                b.store(zero, f.at(both, 0))
                b.store(zero, f.at(both, 1))
                with f.loop(0, POINTS * POINTS) as hw:
                    start = f.add(place, k, f.times(hw, POINTS, outputs))
                    taken = [
                        f.load(f.at(products, start, f.times(d, outputs)), self.vector)
                        for d in range(POINTS)
                    ]
                    for d, value in enumerate(self._combine(f, OUTPUT_TRANSFORM, taken)):
                        b.store(value, f.at(one, d * POINTS * POINTS, hw))
                with f.loop(0, OUTPUTS) as d:
                    plane = f.times(d, POINTS * POINTS)
                    with f.loop(0, POINTS) as h:
                        line = f.add(plane, f.times(h, POINTS))
                        taken = [b.load(f.at(one, line, w)) for w in range(POINTS)]
                        for w, value in enumerate(self._combine(f, OUTPUT_TRANSFORM, taken)):
                            b.store(value, f.at(two, w * POINTS, h))
                    with f.loop(0, OUTPUTS) as w:
                        line = f.times(w, POINTS)
                        taken = [b.load(f.at(two, line, h)) for h in range(POINTS)]
                        target = f.add(voxel, k, f.times(d, outputs), f.times(w, step_w))
                        total, squares = b.load(f.at(both, 0)), b.load(f.at(both, 1))
                        for h, value in enumerate(self._combine(f, OUTPUT_TRANSFORM, taken)):
                            found = self._pack(f, b.fadd(value, offset, flags=_FAST))
                            f.store(found, f.at(to, target, f.times(h, step_h)))
                            kept = self._unpack(f, found)
                            total = b.fadd(total, kept, flags=_FAST)
                            squares = b.fadd(squares, b.fmul(kept, kept, flags=_FAST), flags=_FAST)
                        b.store(total, f.at(both, 0))
                        b.store(squares, f.at(both, 1))
                self._add_up(f, sums, k, outputs, both)
        return f.end()

    def _add_up(self, f: _Function, sums: Any, k: Any, outputs: Any, both: Any) -> None:
        """Add sums of a few values to those in double precision."""
        doubles = self.ir.VectorType(self.double, self.width)
        for which in range(2):
            place = f.at(sums, k, f.times(which, outputs))
            more = f.build.fpext(f.build.load(f.at(both, which)), doubles)
            f.store(f.build.fadd(f.load(place, doubles), more), place)

    def _convolve(  # noqa: PLR0915 - a program, from its first line to its last
        self, load: Any, forward: Any, multiply: Any, back: Any
    ) -> None:
        """Write one row of tiles along W, at one H, over all of D; see `MachineCode.convolve`."""
        floats, i = self.float.as_pointer(), self.integer
        arguments = [i.as_pointer(), i, i, i, floats, self.double.as_pointer()]
        f = _Function(self.module, "convolve", arguments, self.ir)
        task, tile_h, first_w, end_w, scratch, sums = f.function.args
        b = f.build

        def field(number: Any, kind: Any = None) -> Any:
            value = b.load(f.at(task, number))
            return value if kind is None else b.inttoptr(value, kind)

        height, width, depth = field(_HEIGHT), field(_WIDTH), field(_DEPTH)
        channels, used = field(_CHANNELS), field(_USED)
        outputs, sources = field(_OUTPUTS), field(_SOURCES)
        factors, bias = field(_FACTORS, floats), field(_BIAS, floats)
        result = field(_RESULT, self.stored.as_pointer())
        columns = b.alloca(i, POINTS)
        row = f.times(f.add(depth, 2), channels)
        column = f.times(POINTS, row)
        tiles_at = f.times(POINTS, column)
        tile_floats = f.add(f.times(PRODUCTS, channels), _TILE_PADDING)
        strip, tiles = scratch, f.at(scratch, tiles_at)
        products = f.at(scratch, tiles_at, f.times(_TILES_AT_ONCE, tile_floats))
        self._clear(f, strip, f.times(POINTS, column))
        tiles_d = b.sdiv(depth, f.number(OUTPUTS))
        start_w = f.times(first_w, OUTPUTS)
        with f.loop(first_w, end_w) as tile_w:
            corner = f.times(tile_w, OUTPUTS)
            # columns of voxels lie in a ring: two of six are those of the tile before
            fresh = b.select(b.icmp_signed("==", corner, start_w), f.number(0), f.number(2))
            with f.loop(fresh, POINTS) as nearby:
                w = f.add(corner, nearby, -1)
                with f.loop(0, POINTS) as down:
                    h = f.add(f.times(tile_h, OUTPUTS), down, -1)
                    ring = b.srem(f.add(w, POINTS), f.number(POINTS))
                    to = f.at(strip, f.times(ring, column), f.times(down, row), channels)
                    inside = b.and_(
                        b.and_(b.icmp_signed(">=", w, f.number(0)), b.icmp_signed("<", w, width)),
                        b.and_(b.icmp_signed(">=", h, f.number(0)), b.icmp_signed("<", h, height)),
                    )
                    with b.if_else(inside) as (within, outside):
                        with within:
                            self._load_sources(f, field, load, (h, w, width, depth), to, sources)
                        with outside:
                            self._clear(f, to, f.times(depth, channels))
            with f.loop(0, POINTS) as nearby:
                ring = b.srem(f.add(corner, nearby, POINTS - 1), f.number(POINTS))
                b.store(f.times(ring, column), f.at(columns, nearby))
            step_w = f.times(depth, outputs)
            step_h = f.times(width, step_w)
            with f.loop(0, tiles_d, _TILES_AT_ONCE) as first:
                left = b.sub(tiles_d, first)
                few = b.icmp_signed("<", left, f.number(_TILES_AT_ONCE))
                count = b.select(few, left, f.number(_TILES_AT_ONCE))
                b.call(forward, [strip, columns, f.add(depth, 2), channels, first, count, tiles])
                b.call(multiply, [tiles, factors, channels, used, outputs, count, products])
                to = f.at(
                    result,
                    f.times(tile_h, OUTPUTS, step_h),
                    f.times(corner, step_w),
                    f.times(first, OUTPUTS, outputs),
                )
                b.call(back, [products, outputs, count, bias, to, step_h, step_w, sums])
        f.end()

    def _load_sources(
        self, f: _Function, field: Any, load: Any, where: Sequence[Any], to: Any, sources: Any
    ) -> None:
        """Fill a row of the strip from each source, one beside the other along channels."""
        h, w, width, depth = where
        b, floats = f.build, self.float.as_pointer()
        with b.goto_entry_block():  # in a loop it would take more of the stack each time
            place = b.alloca(self.integer)
        b.store(f.number(0), place)
        with f.loop(0, sources) as source:
            base = f.add(f.times(source, _SOURCE_FIELDS), FIRST_SOURCE)
            wide = field(f.add(base, _WIDE))
            values = field(f.add(base, _VALUES), self.stored.as_pointer())
            start = f.times(f.add(f.times(h, width), w), depth, wide)
            channel = b.load(place)
            b.call(
                load,
                [
                    f.at(values, start),
                    depth,
                    wide,
                    field(f.add(base, _SCALE), floats),
                    field(f.add(base, _SHIFT), floats),
                    field(f.add(base, _SLOPE), floats),
                    f.at(to, channel),
                    field(_CHANNELS),
                ],
            )
            b.store(f.add(channel, wide), place)

    def _clear(self, f: _Function, place: Any, count: Any) -> None:
        """Write zeros; `count` is a multiple of `CHANNEL_STEP`."""
        with f.loop(0, count, self.width) as c:
            f.store(self.ir.Constant(self.vector, None), f.at(place, c))

    def _measure(self) -> None:
        """Sum stored values and their squares by channel; see `MachineCode.measure`."""
        i = self.integer
        arguments = [self.stored.as_pointer(), i, i, self.double.as_pointer()]
        f = _Function(self.module, "measure", arguments, self.ir)
        values, voxels, channels, sums = f.function.args
        b = f.build
        at_once = 64  # float32 sums of more would round away what double precision keeps
        both = self._room(f, 2)
        stored_vector = self.ir.VectorType(self.stored, self.width)
        with f.loop(0, voxels, at_once) as first:
            left = b.sub(voxels, first)
            few = b.icmp_signed("<", left, f.number(at_once))
            count = b.select(few, left, f.number(at_once))
            with f.loop(0, channels, self.width) as c:
                for which in range(2):
                    b.store(self.ir.Constant(self.vector, None), f.at(both, which))
                with f.loop(0, count) as voxel:
                    place = f.at(values, f.times(f.add(first, voxel), channels), c)
                    value = self._unpack(f, f.load(place, stored_vector))
                    total, squares = b.load(f.at(both, 0)), b.load(f.at(both, 1))
                    b.store(b.fadd(total, value, flags=_FAST), f.at(both, 0))
                    more = b.fmul(value, value, flags=_FAST)
                    b.store(b.fadd(squares, more, flags=_FAST), f.at(both, 1))
                self._add_up(f, sums, c, channels, both)
        f.end()

    def _activate(self) -> None:
        """Scale, shift and activate stored values; see `MachineCode.activate`."""
        i, floats, stored = self.integer, self.float.as_pointer(), self.stored.as_pointer()
        arguments = [stored, stored, i, i, floats, floats, floats]
        f = _Function(self.module, "activate", arguments, self.ir, in_place=True)
        values, to, voxels, channels, scale, shift, slope = f.function.args
        _, slopes = self._every_lane(f, slope)
        with f.loop(0, voxels) as voxel:
            row = f.times(voxel, channels)
            with f.loop(0, channels, self.width) as c:
                place = f.add(row, c)
                found = self._read_activated(f, f.at(values, place), (scale, shift, slopes), c)
                f.store(self._pack(f, found), f.at(to, place))
        f.end()

    def _average(self) -> None:
        """Average what `_activate` would leave; see `MachineCode.average`."""
        i, floats = self.integer, self.float.as_pointer()
        arguments = [self.stored.as_pointer(), i, i, i, floats, floats, floats, floats]
        f = _Function(self.module, "average", arguments, self.ir)
        values, runs, voxels, channels, scale, shift, slope, to = f.function.args
        b = f.build
        _, slopes = self._every_lane(f, slope)
        total = self._room(f, 1)
        counted = b.fdiv(self.ir.Constant(self.float, 1.0), b.sitofp(voxels, self.float))
        each = b.alloca(self.float)
        b.store(counted, each)
        _, share = self._every_lane(f, each)
        with f.loop(0, runs) as run:
            start = f.times(run, voxels, channels)
            with f.loop(0, channels, self.width) as c:
                b.store(self.ir.Constant(self.vector, None), total)
                with f.loop(0, voxels) as voxel:
                    place = f.at(values, start, f.times(voxel, channels), c)
                    found = self._read_activated(f, place, (scale, shift, slopes), c)
                    b.store(b.fadd(b.load(total), found, flags=_FAST), total)
                mean = b.fmul(b.load(total), share, flags=_FAST)
                f.store(mean, f.at(to, f.times(run, channels), c))
        f.end()

    def _read_activated(self, f: _Function, place: Any, how: Sequence[Any], c: Any) -> Any:
        """Load a vector of stored values, scaled, shifted and activated."""
        scale, shift, slopes = how
        value = self._unpack(f, f.load(place, self.ir.VectorType(self.stored, self.width)))
        factor, offset = f.load(f.at(scale, c), self.vector), f.load(f.at(shift, c), self.vector)
        return self._activated(f, value, factor, offset, slopes)
