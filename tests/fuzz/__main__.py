"""The long run: `python -m tests.fuzz --inputs 10000 --seed 1`; exit code 1 after findings."""

import argparse
import sys
import time

from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import attack


def main() -> int:
    """Run, print what was found, and how much was fed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=[each.name for each in TARGETS])
    options = parser.parse_args()
    start = time.perf_counter()
    findings = attack(tuple(options.target or ()), options.seed, options.inputs)
    for found in findings:
        sys.stdout.write(f"{found.target}, seed {found.seed}, input {found.index}: {found.what}\n")
    seconds = time.perf_counter() - start
    sys.stdout.write(
        f"{options.inputs} inputs, seed {options.seed}: {len(findings)} findings, {seconds:.0f} s\n"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
