#!/usr/bin/env bash
# Trains under DeepSpeed's launcher: bash launchers/deepspeed.sh [LAUNCHER OPTIONS --] [RECIPE] [a.b=c ...]
# One process per GPU of this machine, or two on the CPU; on many machines with `--hostfile FILE --`: each line of FILE
# is a host that ssh reaches and its GPUs, `node1 slots=8`, and this folder is at the same place on all of them.
# The plan is deepspeed unless parallel.plan=... says otherwise. Ends with the exit code of the rank that failed first.
# On one machine DeepSpeed's launcher passes no signal on: SIGTERM sent to it alone ends it, and its ranks train on.
# Where jobs are stopped by signals use launchers/torchrun.py: it runs the same plan and lets ranks save.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test,deepspeed

options=()
for argument in "$@"; do
    [[ "$argument" != -- ]] || { while [[ "$1" != -- ]]; do options+=("$1"); shift; done; shift; break; }
done

check_hosts() {  # FILE: without one, or with a line it does not understand, DeepSpeed trains on this machine alone
    local line number=0 first="" pattern='^[^[:space:]=]+[[:space:]]+slots=([1-9][0-9]*)$'
    [[ -f "$1" ]] || { echo "error: --hostfile $1: there is no such file; name one with a line 'host slots=8' each" >&2; exit 2; }
    while IFS= read -r line || [[ -n "$line" ]]; do
        number=$((number + 1))
        line="$(sed 's/#.*//; s/[[:space:]]*$//' <<<"$line")"
        [[ -n "$line" ]] || continue
        [[ "$line" =~ $pattern ]] || { echo "error: $1, line $number: '$line', wanted 'host slots=8'" >&2; exit 2; }
        [[ -n "$first" ]] || first="${BASH_REMATCH[1]}"
        [[ "${BASH_REMATCH[1]}" == "$first" ]] || {
            echo "error: $1, line $number: ${BASH_REMATCH[1]} slots where the first host has $first; give all the same" >&2
            exit 2
        }
    done <"$1"
    [[ -n "$first" ]] || { echo "error: --hostfile $1 names no host; wanted a line 'host slots=8' for each" >&2; exit 2; }
}
for ((i = 0; i < ${#options[@]}; i++)); do
    case "${options[i]}" in
        -H | --hostfile) check_hosts "${options[i + 1]:-}" ;;
        --hostfile=*) check_hosts "${options[i]#*=}" ;;
    esac
done

recipe_from "$@"

if [[ "$("$python" -c 'import torch; print(torch.cuda.device_count())')" == 0 ]]; then
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 # processes that each take every core would wait for one another
    [[ ${#options[@]} -gt 0 ]] || options=(--num_accelerators 2)
fi
cd "$root" # runs/ is in one place, wherever this is called from, so that the same command goes on with the same run

exec "$python" launchers/deepspeed_runner.py ${options[@]+"${options[@]}"} --module --no_local_rank \
    afm_scale train "$recipe" parallel.plan=deepspeed ${settings[@]+"${settings[@]}"}
