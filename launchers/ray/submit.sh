#!/bin/bash
# Submit a run to a Ray cluster that has this folder at the same path. It does the same as
# `hybridrl launch my.yaml --on ray --submit`.
# Usage: launchers/ray/submit.sh http://head:8265 my.yaml [key=value ...]
set -euo pipefail
dashboard=$1
shift
exec ray job submit --address "$dashboard" -- bash -c 'cd "$1" && shift && exec python -m hybridrl launch "$@" --on ray' \
  bash "$PWD" "$@"
