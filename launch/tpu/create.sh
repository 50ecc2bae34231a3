#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: create.sh --name=NAME --zone=ZONE --topology=GENERATION:AxB[xC] [OPTION ...] [-- FLAG ...]

Asks for TPU slices by a queued resource and waits until they are there, which may take minutes or
days. Ctrl-C ends the waiting, not the request; the same command with --wait_only goes on waiting.
After it: setup.sh, run.sh, logs.sh; delete.sh, or it goes on costing.

  --name=NAME          of the queued resource; its slices are NAME, or NAME-0, NAME-1, ...
  --zone=ZONE          one that has such chips, for example us-west4-a
  --project=PROJECT    default: that of gcloud's configuration
  --topology=T         as of `internvideo-jax compile_report`: v5e:2x4, v5e:16x16, v5p:4x4x4, ...
  --slices=N           of that size each, which work on one run (default: 1)
  --spot               cheaper, and taken away at any time
  --reserved           from a reservation of the project
  --runtime_version=V  image of the hosts; default: the one for the chips, with Python 3.10
  --poll=SECONDS       between two looks at the state (default: 30)
  --wait_only          ask for nothing new
  --dry_run            print the gcloud commands, run none
  -- FLAG ...          further flags of `gcloud compute tpus queued-resources create`, for example
                       --network=NETWORK --service-account=ACCOUNT --labels=team=video

examples:
  create.sh --name=smoke --zone=us-west4-a --topology=v5e:2x4 --spot
  create.sh --name=stage1 --zone=us-west4-a --topology=v5e:16x16 --reserved
  create.sh --name=big --zone=us-east5-a --topology=v5p:4x4x8 --slices=4 -- --network=fast
TEXT
}

topology="" slices=1 capacity=() runtime="" poll=30 wait_only=0
parse "$@"
for option in ${OPTIONS[@]+"${OPTIONS[@]}"}; do
  case $option in
    --topology=*) topology=${option#*=} ;;
    --slices=*) slices=${option#*=} ;;
    --spot | --reserved) capacity+=("$option") ;;
    --runtime_version=*) runtime=${option#*=} ;;
    --poll=*) poll=${option#*=} ;;
    --wait_only) wait_only=1 ;;
    *) unknown "$option" ;;
  esac
done
need_slice
number --slices "$slices"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--poll=$poll: expected seconds"
((${#capacity[@]} < 2)) || die "expected --spot or --reserved, found both"

if ((!wait_only)); then
  need '--topology=T, for example v5e:16x16' "$topology"
  slice "$topology"
  # The cloud counts the cores of v4 and v5p, two for each chip.
  case $GENERATION in
    v4) type=v4-$((2 * CHIPS)) image=tpu-ubuntu2204-base ;;
    v5e) type=v5litepod-$CHIPS image=v2-alpha-tpuv5-lite ;;
    v5p) type=v5p-$((2 * CHIPS)) image=v2-alpha-tpuv5 ;;
    v6e) type=v6e-$CHIPS image=v2-alpha-tpuv6e ;;
  esac
  nodes=("--node-id=$NAME")
  ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$NAME")
  queued_resources create "$NAME" "--accelerator-type=$type" \
    "--runtime-version=${runtime:-$image}" "${nodes[@]}" \
    ${capacity[@]+"${capacity[@]}"} ${REST[@]+"${REST[@]}"}
fi

before=""
while true; do
  state=$(QUIET=1 queued_resources describe "$NAME" '--format=value(state.state)')
  if ((DRY_RUN)); then
    printf '%s\n' "$state"
    exit 0
  fi
  if [[ $state != "$before" ]]; then
    printf '%s %s: %s\n' "$(date +%H:%M:%S)" "$NAME" "$state"
    before=$state
  fi
  case $state in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      die "$NAME is $state: expected ACTIVE; look at \`gcloud compute tpus queued-resources" \
        "describe $NAME --zone=$ZONE\`, then delete.sh and create.sh again"
      ;;
  esac
  sleep "$poll"
done
