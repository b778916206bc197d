"""What the child of `engine_check` does: run an engine once on zeros."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medals_rt.bundle.engines import Engine, list_engines
from medals_rt.common.arrays import open_cupy
from medals_rt.common.errors import MedalsError, RunnerError
from medals_rt.runners.base import TensorSpec
from medals_rt.runners.engine_check import EXIT_FAILED, EXIT_OUT_OF_MEMORY
from medals_rt.runners.tensorrt import TensorRTRunner
from medals_rt.runners.tensorrt_library import open_library


def main(arguments: Sequence[str]) -> int:
    """Run an engine on zeros: what the child does. `arguments` are its folder and its name.

    The reason of a failure is the last line on standard output.
    """
    folder, name = arguments
    engine = next(each for each in list_engines(Path(folder)) if each.record.name == name)
    try:
        _run_on_zeros(engine)
    except MemoryError as error:
        sys.stdout.write(f"out of memory: {error}\n")
        return EXIT_OUT_OF_MEMORY
    except (MedalsError, RuntimeError) as error:  # CuPy's errors are RuntimeErrors
        sys.stdout.write(f"{' '.join(str(error).split())}\n")
        return EXIT_FAILED
    return 0


def _run_on_zeros(engine: Engine) -> None:
    cupy = open_cupy("a runner on a GPU")
    record = engine.record
    with TensorRTRunner(engine, open_library(record.key.library), name=record.graph) as runner:
        for count in sorted(set(runner.prompt_counts or (1,))):
            feeds = {spec.name: _zeros(cupy, spec, count) for spec in runner.inputs}
            for key, array in runner.run(feeds).items():
                if not bool(cupy.isfinite(array).all()):
                    raise RunnerError(
                        f"{key} is not finite where all inputs are 0 and N is {count}",
                        code="output-not-finite",
                    )


def _zeros(cupy: Any, spec: TensorSpec, count: int) -> Any:
    shape = tuple(size if isinstance(size, int) else count for size in spec.shape)
    return cupy.zeros(shape, spec.dtype)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
