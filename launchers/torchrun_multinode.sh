#!/usr/bin/env bash
# Trains on several hosts without a scheduler. On each of them, with the same words:
#   NODES="host1 host2 ..." bash launchers/torchrun_multinode.sh [RECIPE] [a.b=c ...]
# The hosts see this folder and run.folder at the same place. To be edited, or set before it is called:
#   NODES               the hosts, by names or addresses that all of them know; at the first one's they meet
#   PORT                where the first one listens; the same everywhere (29400)
#   PROCESSES_PER_NODE  ranks of a host (one per GPU; without GPUs, 1)
#   NODE_RANK           which of NODES this host is, from 0, where it is not told by its addresses
#   RUN_ID              tells jobs apart that meet at the same place (the recipe's name)
#   WAIT_SECONDS        how long the hosts wait for one another (600), where the first one's name is not yet known too
#   MAX_RESTARTS        how often all ranks are started again after one was lost (3)
#   MIN_NODES           with how many of NODES to go on when the others are lost (all of them): docs/operating.md
# Ends as launchers/torchrun.py does: 75 means that the same command goes on; on several hosts, if any ended with 75.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test

recipe_from "$@"
cd "$root" # runs/ is in one place, wherever this is called from, so that the same command goes on with the same run

export PORT="${PORT:-29400}"
place="$("$python" launchers/nodes.py)"
read -r rank number head address <<<"$place"

processes="${PROCESSES_PER_NODE:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')}"
for setting in "PORT=$PORT" "PROCESSES_PER_NODE=$processes" "MAX_RESTARTS=${MAX_RESTARTS:=3}" \
    "MIN_NODES=${MIN_NODES:=$number}"; do
    [[ "${setting#*=}" =~ ^[0-9]+$ ]] || { echo "error: $setting: wanted a whole number" >&2; exit 2; }
done
((MIN_NODES >= 1 && MIN_NODES <= number)) ||
    { echo "error: MIN_NODES=$MIN_NODES: wanted 1 to $number, of NODES" >&2; exit 2; }

exec "$python" launchers/torchrun.py --nnodes "$MIN_NODES:$number" --nproc-per-node "$processes" \
    --max-restarts "$MAX_RESTARTS" --rdzv-backend c10d --rdzv-endpoint "$head:$PORT" \
    --rdzv-id "${RUN_ID:-$(basename "$recipe" .yaml)}" \
    --rdzv-conf "is_host=$((rank == 0)),join_timeout=${WAIT_SECONDS:-600}" --local-addr "$address" \
    -m afm_scale train "$recipe" ${settings[@]+"${settings[@]}"}
