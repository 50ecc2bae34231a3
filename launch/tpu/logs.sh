#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: logs.sh --name=NAME --zone=ZONE [OPTION ...]

Shows what the run of run.sh says on one host, by default the first one of the first slice, which
speaks for all; the others write warnings and errors. Each host keeps its own in
~/internvideo-logs/train.log. What was measured is in WORKDIR/metrics.jsonl and tensorboard/.

  --name=NAME        of create.sh
  --zone=ZONE        likewise
  --project=PROJECT  default: that of gcloud's configuration
  --node=N           slice (default: 0)
  --worker=N         host of it (default: 0)
  --all              of all hosts of all slices, whose names stand before the lines
  --lines=N          the last N lines (default: 50)
  --follow           go on until Ctrl-C, which does not disturb the run
  --dry_run          print the gcloud command, run none

examples:
  logs.sh --name=stage1 --zone=us-west4-a --follow
  logs.sh --name=stage1 --zone=us-west4-a --all --lines=1
TEXT
}

node=0 worker=0 lines=50 follow=()
parse "$@"
for option in ${OPTIONS[@]+"${OPTIONS[@]}"} ${REST[@]+"${REST[@]}"}; do
  case $option in
    --node=*) node=${option#*=} ;;
    --worker=*) worker=${option#*=} ;;
    --all) node=all worker=all ;;
    --lines=*) lines=${option#*=} ;;
    --follow) follow=(--follow) ;;
    *) unknown "$option" ;;
  esac
done
need_slice
number --lines "$lines"
for place in "$node" "$worker"; do
  [[ $place =~ ^([0-9]+|all)$ ]] || die "expected the number of a slice and of a host, found '$place'"
done
on_hosts "$node" "$worker" bash internvideo/launch/tpu/host.sh logs "$lines" \
  ${follow[@]+"${follow[@]}"}
