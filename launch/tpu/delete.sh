#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: delete.sh --name=NAME --zone=ZONE [OPTION ...]

Deletes the queued resource and its slices, which then cost nothing. Logs of the hosts are gone; work
folders, buckets and shares stay. A run that is going on loses what is newer than its last
checkpoint: stop.sh first. gcloud asks before it deletes.

  --name=NAME        of create.sh
  --zone=ZONE        likewise
  --project=PROJECT  default: that of gcloud's configuration
  --yes              do not ask
  --dry_run          print the gcloud command, run none
TEXT
}

quiet=()
parse "$@"
for option in ${OPTIONS[@]+"${OPTIONS[@]}"} ${REST[@]+"${REST[@]}"}; do
  case $option in
    --yes) quiet=(--quiet) ;;
    *) unknown "$option" ;;
  esac
done
need_slice
queued_resources delete "$NAME" --force ${quiet[@]+"${quiet[@]}"}
