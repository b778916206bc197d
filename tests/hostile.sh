#!/bin/sh
# The tests where a machine is least like a developer's: no bf16, old vector instructions, one core,
# Ctrl-C ignored, no home, ASCII alone, far from Greenwich.
#
#     tests/hostile.sh [arguments of pytest]        # with PYTHON=... for another Python
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

# A processor of 2013. OpenVINO takes no such cap: tests.fakes.no_bf16 stands for it below, in this
# process alone. All else is inherited by the processes that tests start.
export OPENBLAS_CORETYPE=Haswell ATEN_CPU_CAPABILITY=avx2
# What even root can't make; caches have to lie elsewhere.
export HOME=/proc/no/home
unset XDG_CACHE_HOME MEDALS_RT_CACHE
# Python's own mending of the locale C is off: text without an encoding is ASCII.
export LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0
export TZ=Asia/Kolkata
# As in a job in the background; children inherit it.
trap '' INT

one_core=
if command -v taskset >/dev/null; then one_core="taskset -c 0"; fi
exec $one_core "$python" -m pytest -p tests.fakes.no_bf16 -p no:cacheprovider "$@"
