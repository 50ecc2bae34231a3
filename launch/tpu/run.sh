#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: run.sh --name=NAME --zone=ZONE [OPTION ...] -- --config=FILE --workdir=DIR [FLAG ...]

Starts `internvideo-jax train` with the flags after -- on every host of every slice, and returns: the
run does not need this machine. On each host `internvideo-jax supervise` starts it again on exit code
42 (preempted) and after failures, from the newest checkpoint; logs.sh shows how it gets on.

The same command, after the same flags, goes on with a run that stop.sh, a preemption or delete.sh
has ended: on any slices, as long as the work folder is there.

  --name=NAME        of create.sh
  --zone=ZONE        likewise
  --project=PROJECT  default: that of gcloud's configuration
  --failures=N       failures without a new checkpoint between them until it is given up (default: 5)
  --dry_run          print the gcloud commands, run none
  -- FLAG ...        of `internvideo-jax train`; paths are those of the hosts, and --workdir must be
                     one that all of them see, such as below /mnt/work (setup.sh --nfs)

examples:
  run.sh --name=stage1 --zone=us-west4-a -- --config=configs/stage1/pretrain.py:1b \
    --workdir=/mnt/work/runs/1b --config.data.shards=/mnt/data/shards \
    --config.stage.clip_teacher_path=/mnt/data/models/internvl \
    --config.stage.mae_teacher_path=/mnt/data/models/videomae
TEXT
}

failures=5
parse "$@"
for option in ${OPTIONS[@]+"${OPTIONS[@]}"}; do
  case $option in
    --failures=*) failures=${option#*=} ;;
    --config* | --workdir*) die "$option: expected the flags of train after --" ;;
    *) unknown "$option" ;;
  esac
done
need_slice
number --failures "$failures"
train_flags

on_hosts all all bash internvideo/launch/tpu/host.sh start "--failures=$failures" train "${REST[@]}"
