#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: stop.sh --name=NAME --zone=ZONE [OPTION ...]

Stops the run of run.sh on all hosts, with a checkpoint, and waits for that. The slices stay, and go
on costing: run.sh goes on with the run, delete.sh ends the slices.

  --name=NAME        of create.sh
  --zone=ZONE        likewise
  --project=PROJECT  default: that of gcloud's configuration
  --dry_run          print the gcloud command, run none
TEXT
}

parse "$@"
for option in ${OPTIONS[@]+"${OPTIONS[@]}"} ${REST[@]+"${REST[@]}"}; do
  unknown "$option"
done
need_slice
on_hosts all all bash internvideo/launch/tpu/host.sh stop
