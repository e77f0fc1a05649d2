#!/usr/bin/env bash
# Runs every test that this machine can run: bash tests/run.sh [--quick] [pytest options]
# Those marked `long` wait for minutes, for lost hosts and for Slurm: bash tests/run.sh -m long
# --quick: those that take seconds and start no processes, for the inner loop.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../launchers/environment.sh" test,data,evaluation,parallel
cd "$root"

chosen=(-m "not long")
if [[ "${1:-}" == --quick ]]; then
    chosen=(-m "not slow and not processes and not long")
    shift
fi
export OMP_NUM_THREADS=1
exec "$python" -m pytest -q -n auto --maxprocesses 8 --dist worksteal tests ${chosen[@]+"${chosen[@]}"} "$@"
