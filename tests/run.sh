#!/usr/bin/env bash
# Runs every test that this machine can run: bash tests/run.sh [pytest options]
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../launchers/environment.sh" test,data,evaluation,parallel
cd "$root"

export OMP_NUM_THREADS=1
exec "$python" -m pytest -q -n auto --maxprocesses 8 --dist worksteal tests "$@"
