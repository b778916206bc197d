#!/bin/sh
# The challenge's entry: every inputs/*.npz, with the prompts in it, to an outputs/*.npz of its name.
#
#   sh predict.sh [INPUTS [OUTPUTS [more options of `medals-rt batch`]]]
#
# Needs no network and no home. A case that fails does not stop the others: the exit code is 1 then,
# and standard error names it. Run again, it goes on where it stopped (records and reports are in
# OUTPUTS/.medals-rt). MEDALS_RT_BUNDLE names the model, MEDALS_RT_TIME_BUDGET the seconds a class.
set -eu

inputs=${1:-inputs}
outputs=${2:-outputs}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] && shift

if [ ! -d "$inputs" ]; then
  echo "error: there is no folder $inputs; mount the cases there or name another" >&2
  exit 2
fi
# exec: a signal to this process is one to medals-rt, which then leaves nothing half written.
exec medals-rt batch "$inputs"/*.npz "$outputs" --format npz --reports "$outputs/.medals-rt" \
  --no-preview --time-budget "${MEDALS_RT_TIME_BUDGET:-60}" "$@"
