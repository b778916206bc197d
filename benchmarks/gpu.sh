#!/usr/bin/env bash
# Everything that wants a CUDA GPU, in one call: the tests marked gpu, then the benchmarks.
#
#   benchmarks/gpu.sh                       with the environment's own python3
#   benchmarks/gpu.sh tests arrays          only these parts of: tests arrays latency bench
#   PYTHON=path/to/python benchmarks/gpu.sh
#
# For a bare machine: it installs nothing and reaches no network. It needs Python 3.11 with NumPy,
# SciPy, PyTorch, CuPy and ONNX Runtime; what else is missing is named in the report, and its part
# is left out (folders with packages that it lacks may stand in PYTHONPATH). Networks run on the
# GPU where ONNX Runtime is the one for CUDA or TensorRT is there. The report lands in
# benchmarks/results/gpu/ (or the folder in OUT).
#
# BUNDLE is another bundle than the demo; then STAGE1 and STAGE2 are its checkpoints (for PyTorch
# beside it), CASE and PROMPTS a case for `medals-rt bench`, where the bundle holds none.
# Ends with 0 only if there is a GPU and every part that could run has passed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
out=${OUT:-benchmarks/results/gpu}
bundle=${BUNDLE:-engines/demo}
stage1=${STAGE1:-} stage2=${STAGE2:-}
if [ -z "${BUNDLE:-}" ]; then
  stage1=benchmarks/checkpoints/demo_coarse.pth stage2=benchmarks/checkpoints/demo_fine.pth
fi
wanted=" ${*:-tests arrays latency bench} "
own="typer rich msgspec safetensors rapidfuzz cc3d psutil filelock" # what medals-rt itself needs
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
    sys.exit("gpu.sh: CuPy finds no CUDA GPU: run this on a machine that has one, with its driver")
EOF

mkdir -p "$out"
report=$out/report.md
failed=0

lacks() { "$python" -c "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if not u.find_spec(n)))" "$@"; }

# can NAME MODULE...: whether a part is wanted and can run; says so where it can't
can() {
  local name=$1 missing
  shift
  [[ $wanted == *" $name "* ]] || return 1
  missing=$(lacks "$@")
  [ -z "$missing" ] || left_out "$name" "this Python lacks $missing" || return 1
}

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
  return 1
}

"$python" - >"$report" <<'EOF'
import datetime
import importlib.util as util
from importlib.metadata import PackageNotFoundError, version

import cupy

from medals_rt.pipeline.report import library_versions, machine_facts

gpu = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
facts = machine_facts()
print(f"# On a GPU, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n")
print(f"- GPU: {gpu['name'].decode()}, {gpu['totalGlobalMem'] / 2**30:.0f} GiB")
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

# Only files with such tests are read: others import what a bare machine lacks. Warnings are no
# failures here: its libraries are not the ones that the tests are held to elsewhere.
if can tests $own pytest hypothesis array_api_compat array_api_strict onnx onnxscript; then
  mapfile -t files < <(grep -rlwE 'mark\.gpu|xp' tests --include='test_*.py')
  part tests "$python" -m pytest -m gpu -W default -p no:cacheprovider "${files[@]}"
fi
if can arrays array_api_compat; then
  part arrays "$python" benchmarks/device_arrays.py --output "$out/arrays"
fi

# Runners of this GPU, the fastest first. Engines serve it alone: a copy of the bundle gets them.
runners=()
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [[ $wanted == *" latency "* || $wanted == *" bench "* ]] && [ -z "$(lacks $own onnx)" ]; then
  mapfile -t runners < <("$python" -c "
from medals_rt.common.gpu import require_gpu
from medals_rt.runners.selection import usable
from medals_rt.runners.tensorrt_library import open_library
for kind in ('tensorrt', 'tensorrt-rtx', 'onnxruntime-cuda'):
    if not usable(kind):
        continue
    if kind == 'tensorrt-rtx':  # it builds for RTX GPUs, and not for an H100
        if not open_library(kind).builds_for(require_gpu(kind).architecture):
            continue
    print(kind)")
  cp -r "$bundle" "$scratch/bundle"
  bundle=$scratch/bundle
  for runner in "${runners[@]}"; do
    case $runner in
      tensorrt) part engines-tensorrt "$python" -m medals_rt build --bundle "$bundle" --target tensorrt ;;
      tensorrt-rtx) part engines-tensorrt-rtx "$python" -m medals_rt build --bundle "$bundle" --target tensorrt-rtx --arch CURRENT ;;
    esac
  done
fi

if can latency $own array_api_compat; then
  if [ -n "$stage1" ] && [ -n "$stage2" ]; then
    part latency "$python" benchmarks/latency.py --device cuda --bundle "$bundle" \
      --stage1 "$stage1" --stage2 "$stage2" --output "$out/latency"
  else
    left_out latency "needs the bundle's checkpoints: set STAGE1 and STAGE2" || true
  fi
fi
if can bench $own array_api_compat onnx jinja2 matplotlib; then
  given=${CASE:-$(find "$bundle/cases" -name '*.npz' -print -quit 2>/dev/null || true)}
  if [ "${#runners[@]}" -eq 0 ]; then
    left_out bench "no runner for a GPU: needs ONNX Runtime for CUDA (onnxruntime-gpu), or TensorRT" || true
  elif [ -z "$given" ]; then
    left_out bench "the bundle holds no case: set CASE (and PROMPTS)" || true
  else
    part bench "$python" -m medals_rt bench --bundle "$bundle" --output "$out/bench" \
      "${runners[@]/#/--runner=}" ${CASE:+--input "$CASE"} ${PROMPTS:+--prompts "$PROMPTS"} \
      ${stage1:+--stage1 "$stage1"} ${stage2:+--stage2 "$stage2"}
  fi
fi

echo
cat "$report"
exit "$failed"
