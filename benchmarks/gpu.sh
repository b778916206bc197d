#!/usr/bin/env bash
# Everything that wants a CUDA card, in one call: the tests marked gpu, then the benchmarks.
#
#   benchmarks/gpu.sh                       with the environment's own python3
#   PYTHON=path/to/python benchmarks/gpu.sh
#
# For a bare machine: it installs nothing and reaches no network. It needs Python 3.11 with NumPy,
# SciPy, PyTorch, CuPy and ONNX Runtime for CUDA; what else is missing is named in the report, and
# its part is left out (folders with packages that it lacks may stand in PYTHONPATH). The report
# lands in benchmarks/results/gpu/ (or the folder in OUT).
# Ends with 0 only if there is a card and every part that could run has passed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
out=${OUT:-benchmarks/results/gpu}
bundle=${BUNDLE:-engines/demo}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

command -v "$python" >/dev/null || { echo "gpu.sh: no $python: set PYTHON" >&2; exit 2; }
"$python" - <<'EOF' || exit 2
import importlib.util as util
import sys

if sys.version_info < (3, 11):
    sys.exit(f"gpu.sh: needs Python 3.11 or later, this is {sys.version.split()[0]}: set PYTHON")
missing = [name for name in ("numpy", "scipy", "torch", "cupy", "onnxruntime") if not util.find_spec(name)]
if missing:
    sys.exit(f"gpu.sh: this Python lacks {', '.join(missing)}: install them, or set PYTHON to one that has them")
import cupy

if not cupy.is_available():
    sys.exit("gpu.sh: CuPy finds no CUDA card: run this on a machine that has one, with its driver")
EOF

mkdir -p "$out"
report=$out/report.md
failed=0

has() { "$python" -c "import importlib.util as u, sys; sys.exit(not all(u.find_spec(n) for n in sys.argv[1:]))" "$@"; }

# part NAME COMMAND...: run it, keep what it says, note how it went
part() {
  local name=$1 log=$out/$1.log code=0 start=$SECONDS
  shift
  echo "== $name: $*"
  "$@" >"$log" 2>&1 || code=$?
  tail -n 3 "$log"
  if [ "$code" -eq 0 ]; then
    echo "| $name | passed | $((SECONDS - start)) |" >>"$report"
  else
    echo "| $name | **failed** ($code), see $name.log | $((SECONDS - start)) |" >>"$report"
    failed=1
  fi
}

left_out() {
  echo "== $1: left out: $2"
  echo "| $1 | left out: $2 | |" >>"$report"
}

"$python" - >"$report" <<'EOF'
import datetime
import importlib.util as util
from importlib.metadata import PackageNotFoundError, version

import cupy

from medals_rt.report import library_versions, machine_facts

card = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
facts = machine_facts()
print(f"# On a card, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n")
print(f"- card: {card['name'].decode()}, {card['totalGlobalMem'] / 2**30:.0f} GiB")
print(f"- driver speaks CUDA {cupy.cuda.runtime.driverGetVersion()}, runtime {cupy.cuda.runtime.runtimeGetVersion()}")
print(f"- processor: {facts['processor']}, {facts['cores']} cores")
found = library_versions()
for name in ("torch", "cupy-cuda12x", "cupy-cuda13x", "cucim-cu12", "cucim-cu13"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        continue
print("- versions: " + ", ".join(f"{name} {number}" for name, number in found.items()))
lacking = [n for n in ("cucim", "tensorrt", "cc3d", "array_api_compat", "pytest") if not util.find_spec(n)]
print(f"- not installed: {', '.join(lacking) or 'nothing that is used'}\n")
print("| part | result | seconds |\n|---|---|---:|")
EOF

if has pytest hypothesis array_api_compat array_api_strict; then
  part tests "$python" -m pytest -m gpu -p no:cacheprovider
else
  left_out tests "needs pytest, hypothesis, array-api-compat and array-api-strict"
fi
if has safetensors msgspec; then
  part latency "$python" benchmarks/latency.py --bundle "$bundle" \
    --stage1 benchmarks/checkpoints/demo_coarse.pth \
    --stage2 benchmarks/checkpoints/demo_fine.pth --output "$out/latency"
else
  left_out latency "needs safetensors and msgspec"
fi
if has array_api_compat; then
  part arrays "$python" benchmarks/device_arrays.py --output "$out/arrays"
else
  left_out arrays "needs array-api-compat"
fi
if has typer rich safetensors msgspec && [ -f medals_rt/cli/bench.py ]; then
  part bench "$python" -m medals_rt bench --bundle "$bundle" --output "$out/bench"
else
  left_out bench "needs typer, rich, safetensors and msgspec, and the command bench"
fi

echo
cat "$report"
exit "$failed"
