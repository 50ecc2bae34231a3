#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: setup.sh --name=NAME --zone=ZONE [OPTION ...]

Copies this checkout, with what is not committed, to every host of every slice, and installs it
there with Python 3.12, which uv brings (the images have 3.10). Do so again after a change of the
code, and after stop.sh. Your key must be in the agent: ssh-add ~/.ssh/google_compute_engine

  --name=NAME          of create.sh
  --zone=ZONE          likewise
  --project=PROJECT    default: that of gcloud's configuration
  --nfs=SERVER:/SHARE  mount it at /mnt/work, to write on: work folders must be seen by all hosts;
                       a Filestore instance has such a share
  --bucket=BUCKET      mount it at /mnt/data with gcsfuse, to read from: shards and teachers
  --dry_run            print the commands, run none

examples:
  setup.sh --name=stage1 --zone=us-west4-a --nfs=10.0.0.2:/work --bucket=my-clips
TEXT
}

options=()
parse "$@"
for option in ${OPTIONS[@]+"${OPTIONS[@]}"}; do
  case $option in
    --nfs=?*:/?* | --bucket=?*) options+=("$option") ;;
    --nfs=*) die "$option: expected --nfs=SERVER:/SHARE" ;;
    *) unknown "$option" ;;
  esac
done
((${#REST[@]} == 0)) || die "expected nothing after --, found '${REST[0]}'"
need_slice
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
  die "$root: expected a git checkout of internvideo_jax, which is what the hosts get"

# What git knows or would take, as far as it is there; the tests stay here.
files() {
  local file
  git -C "$root" ls-files -z --cached --others --exclude-standard -- ':!tests' |
    while IFS= read -r -d '' file; do
      [[ ! -e $root/$file ]] || printf '%s\0' "$file"
    done
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=$folder/internvideo.tar.gz
if ((!DRY_RUN)); then
  # The variable keeps macOS from adding files of its own.
  files | COPYFILE_DISABLE=1 tar -C "$root" -czf "$archive" --null -T -
fi
queued_resources scp "$archive" "$NAME:internvideo.tar.gz" --node=all --worker=all
unpack='rm -rf internvideo && mkdir internvideo && tar -C internvideo -xzf internvideo.tar.gz'
on_hosts all all bash -c "$unpack"
on_hosts all all bash internvideo/launch/tpu/host.sh setup ${options[@]+"${options[@]}"}
