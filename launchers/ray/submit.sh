#!/bin/bash
# Hand a run to a Ray cluster that sees this folder at the same path: what `hybridrl launch my.yaml --on ray --submit`
# does. Usage: launchers/ray/submit.sh http://head:8265 my.yaml [key=value ...]
set -euo pipefail
dashboard=$1
shift
exec ray job submit --address "$dashboard" -- bash -c 'cd "$1" && shift && exec python -m hybridrl launch "$@" --on ray' \
  bash "$PWD" "$@"
