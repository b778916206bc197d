#!/usr/bin/env bash
# Everything that wants a CUDA GPU, in one call, ready for a quarter of an hour on a bare machine.
#
#   benchmarks/gpu.sh                       with the environment's own python3
#   benchmarks/gpu.sh tests full            only these of the parts below
#   benchmarks/gpu.sh --rehearse            all of it at small size on the processor, no GPU needed
#   LIMIT_full=300 benchmarks/gpu.sh        other seconds for a part; LIMIT=60: for all of them
#   TOTAL=3600 benchmarks/gpu.sh            other seconds for all parts together than 900
#
# The parts, in this order (what counts most comes first):
#   tests    the tests marked gpu
#   models   made-up checkpoints of the released size and their fp16 bundle, for the next five
#   case     a whole case, cold and warm, by step; labels against the processor's
#   full     a pass of both windows: PyTorch, ONNX Runtime, medals-rt; share of the matrix rate
#   profile  the kernels of a pass that take longest
#   layers   operations of the runner cudnn one by one
#   plans    cuDNN's plans for convolutions, and what it computes along with them
#   memory   the most memory in use, against the plan
#   arrays   the array steps, GPU against processor
#   latency  a window of the bundle against PyTorch
#   bench    `medals-rt bench` with every runner of the GPU
#
# It installs nothing and reaches no network. It needs Python 3.11 with NumPy, SciPy, PyTorch, CuPy
# and ONNX Runtime; what else is missing is named in the report, and its part is left out (folders
# with packages that it lacks may stand in PYTHONPATH). Networks run on the GPU where ONNX Runtime
# is the one for CUDA or TensorRT is there.
#
# Each part has a time limit of its own, and all together have TOTAL: the last ones have what is left
# of it, or are left out. A part leaves PART.md, PART.json and PART.log in
# benchmarks/results/gpu/ (or the folder in RESULTS), written as it goes: one that fails or is stopped
# leaves what it had, and the next one runs. report.md lists them.
#
# MODELS is a folder that keeps what the part models makes: the next call takes it from there.
# BUNDLE is another bundle than the demo; then STAGE1 and STAGE2 are its checkpoints (for PyTorch
# beside it), CASE and PROMPTS a case for `medals-rt bench`, where the bundle holds none.
# Ends with 0 only if there is a GPU (or it rehearses) and every part that could run has passed.
set -euo pipefail
cd "$(dirname "$0")/.."

all="tests models case full profile layers memory plans arrays latency bench"
declare -A limits=([tests]=150 [models]=80 [case]=140 [full]=180 [profile]=40 [layers]=20 [plans]=45 [memory]=45 [arrays]=45 [latency]=50 [bench]=60 [engines]=60)
shortest=5 # seconds that a part needs at least to be worth its start
declare -A small=([models]="" [full]="" [profile]="" [layers]="" [plans]="" [case]="" [memory]="" [arrays]="" [latency]="")
device=cuda
if [ "${1:-}" = --rehearse ]; then
  shift
  device=cpu
  TOTAL=${TOTAL:-3600}
  small=(
    [models]="--window 32"
    [full]="--device cpu --repetitions 1 --families medals-rt pytorch onnxruntime"
    [case]="--device cpu --shape 24 24 24 --runs 2 --crop 24"
    [profile]="--device cpu"
    [layers]="--repetitions 1"
    [plans]="--edge 16 --repetitions 1"
    [memory]="--device cpu --shape 24 24 24"
    [arrays]="--small"
    [latency]="--device cpu --repetitions 1 --classes 1"
  )
fi
total=${TOTAL:-900}
python=${PYTHON:-python3}
out=${RESULTS:-benchmarks/results/gpu}
bundle=${BUNDLE:-engines/demo}
stage1=${STAGE1:-} stage2=${STAGE2:-}
if [ -z "${BUNDLE:-}" ]; then
  stage1=benchmarks/checkpoints/demo_coarse.pth stage2=benchmarks/checkpoints/demo_fine.pth
fi
wanted=" ${*:-$all} "
for name in $wanted; do
  [[ " $all " == *" $name "* ]] || { echo "gpu.sh: there is no part $name: $all" >&2; exit 2; }
done
own="typer rich msgspec safetensors rapidfuzz cc3d psutil filelock" # what medals-rt itself needs
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

command -v "$python" >/dev/null || { echo "gpu.sh: no $python: set PYTHON" >&2; exit 2; }
DEVICE=$device "$python" - <<'EOF' || exit 2
import importlib.util as util
import os
import sys

if sys.version_info < (3, 11):
    sys.exit(f"gpu.sh: needs Python 3.11 or later, this is {sys.version.split()[0]}: set PYTHON")
needed = ("numpy", "scipy", "torch", "onnxruntime", *(("cupy",) if os.environ["DEVICE"] == "cuda" else ()))
missing = [name for name in needed if not util.find_spec(name)]
if missing:
    sys.exit(f"gpu.sh: this Python lacks {', '.join(missing)}: install them, or set PYTHON to one that has them")
if os.environ["DEVICE"] == "cuda":
    import cupy

    if not cupy.is_available():
        sys.exit("gpu.sh: CuPy finds no CUDA GPU: run this on a machine that has one, with its driver")
EOF

mkdir -p "$out"
out=$(cd "$out" && pwd)
report=$out/report.md
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
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

# limit_of NAME: the seconds that a part may take; engines of any library share one entry
limit_of() {
  local own=LIMIT_${1%%-*}
  echo "${!own:-${LIMIT:-${limits[${1%%-*}]}}}"
}

# part NAME COMMAND...: run it within its limit, keep what it says, note how it went
part() {
  local name=$1 log=$out/$1.log code=0 start=$SECONDS result
  local limit left=$((total - SECONDS))
  limit=$(limit_of "$name")
  shift
  if [ "$left" -lt "$shortest" ]; then
    left_out "$name" "the $total s for all parts are over" || true
    failed=1
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  rm -f "$out/$name.json" "$out/$name.md"
  echo "== $name (at most $limit s): $*"
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 || code=$?
  tail -n 3 "$log"
  case $code in
    0) result=passed ;;
    124 | 137) result="**stopped** after $limit s" ;;
    *) result="**failed** ($code), see $name.log" ;;
  esac
  [ "$code" -eq 0 ] || failed=1
  echo "| $name | $result | $((SECONDS - start)) |" >>"$report"
  "$python" benchmarks/gpu_report.py --output "$out/$name" --result "$result" \
    --seconds "$((SECONDS - start))" --limit "$limit" || failed=1
}

left_out() {
  echo "== $1: left out: $2"
  echo "| $1 | left out: $2 | |" >>"$report"
  return 1
}

most=0
for name in $wanted; do most=$((most + $(limit_of "$name"))); done
echo "== at most $((most < total ? most : total)) s altogether:$(for name in $wanted; do echo -n " $name $(limit_of "$name")"; done)"

DEVICE=$device "$python" - >"$report" <<'EOF'
import importlib.util as util
import os
import sys

sys.path.insert(0, "benchmarks")
from gpu_report import facts, markdown

title = "On a GPU" if os.environ["DEVICE"] == "cuda" else "Rehearsed on a processor: no figures of a GPU"
lacking = [n for n in ("cucim", "tensorrt", "cc3d", "array_api_compat", "pytest") if not util.find_spec(n)]
remarks = [f"not installed: {', '.join(lacking) or 'nothing that is used'}"]
print(markdown({"title": title, **facts(), "rows": [], "remarks": remarks}, ()))
print("| part | result | seconds |\n|---|---|---:|")
EOF

# Only files with such tests are read: others import what a bare machine lacks. Warnings are no
# failures here: its libraries are not the ones that the tests are held to elsewhere.
# -v: a run that is stopped has named the tests that passed.
fakes=()
[ "$device" = cuda ] || fakes=(env MEDALS_RT_FAKES=1 PYTHONPATH="$PWD/tests/fakes:$PYTHONPATH")
if can tests $own pytest hypothesis array_api_compat array_api_strict onnx onnxscript; then
  mapfile -t files < <(grep -rlwE 'mark\.gpu|xp' tests --include='test_*.py')
  if [ "$device" = cpu ]; then files=(-p tests.fakes.gpu tests/common/test_arrays.py); fi
  part tests "${fakes[@]}" "$python" -m pytest -v -m gpu -W default -p no:cacheprovider "${files[@]}"
fi

models=${MODELS:-$scratch/models}
if [[ $wanted =~ " models "|" case "|" full "|" profile "|" layers "|" memory " && ! -f $models/bundle/bundle.json ]]; then
  missing=$(lacks $own onnx onnxscript array_api_compat)
  if [ -n "$missing" ]; then
    left_out models "this Python lacks $missing" || true
  else
    part models "$python" benchmarks/gpu_models.py --folder "$models" --output "$out/models" ${small[models]}
  fi
fi
for name in case full profile layers memory; do
  [[ $wanted == *" $name "* ]] || continue
  faked=()
  if [ "$name" = layers ]; then
    faked=("${fakes[@]}")
    [ "$device" = cpu ] || can layers cudnn || continue
  fi
  if [ -f "$models/bundle/bundle.json" ]; then
    part "$name" "${faked[@]}" "$python" "benchmarks/gpu_$name.py" --folder "$models" --output "$out/$name" ${small[$name]}
  else
    left_out "$name" "no models" || true
  fi
done

if [[ $device == cpu && $wanted == *" plans "* ]] || can plans cudnn; then
  part plans "${fakes[@]}" "$python" benchmarks/gpu_plans.py --output "$out/plans" ${small[plans]}
fi
if can arrays array_api_compat; then
  part arrays "${fakes[@]}" "$python" benchmarks/device_arrays.py --output "$out/arrays" ${small[arrays]}
fi

# Runners of this GPU, the fastest first. Engines serve it alone: a copy of the bundle gets them.
runners=()
if [[ $wanted =~ " latency "|" bench " ]] && [ -z "$(lacks $own onnx)" ]; then
  if [ "$device" = cpu ]; then
    runners=(onnxruntime)
  else
    mapfile -t runners < <("$python" -c "
from medals_rt.common.gpu import require_gpu
from medals_rt.runners.selection import usable
from medals_rt.runners.tensorrt_library import open_library
for kind in ('tensorrt', 'tensorrt-rtx', 'cudnn', 'onnxruntime-cuda'):
    if not usable(kind):
        continue
    if kind == 'tensorrt-rtx':  # it builds for RTX GPUs, and not for an H100
        if not open_library(kind).builds_for(require_gpu(kind).architecture):
            continue
    print(kind)")
  fi
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
    part latency "$python" benchmarks/latency.py --bundle "$bundle" \
      --stage1 "$stage1" --stage2 "$stage2" --output "$out/latency" ${small[latency]:---device cuda}
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
    quick=()
    [ "$device" = cuda ] || quick=(--quick --repetitions 1)
    part bench "$python" -m medals_rt bench --bundle "$bundle" --output "$out/bench" "${quick[@]}" \
      "${runners[@]/#/--runner=}" ${CASE:+--input "$CASE"} ${PROMPTS:+--prompts "$PROMPTS"} \
      ${stage1:+--stage1 "$stage1"} ${stage2:+--stage2 "$stage2"}
  fi
fi

echo
cat "$report"
exit "$failed"
