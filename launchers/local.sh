#!/usr/bin/env bash
# Trains on this machine: bash launchers/local.sh [RECIPE] [a.b=c ...]     (RECIPE: the digits, if not given)
# One process per GPU, or two on the CPU. Ends with the exit code of the training.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test

recipe_from "$@"
cd "$root" # runs/ is in one place, wherever this is called from, so that the same command goes on with the same run

processes="$("$python" -c 'import torch; print(torch.cuda.device_count())')"
if [[ "$processes" == 0 ]]; then
    processes=2
    export OMP_NUM_THREADS=1 # two processes that each take every core would wait for one another
fi

exec "$python" launchers/torchrun.py --standalone --nproc-per-node "$processes" -m afm_scale train "$recipe" ${settings[@]+"${settings[@]}"}
