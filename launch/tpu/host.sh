#!/usr/bin/env bash
# What the other scripts run on each host, from the folder that setup.sh has copied:
#
#   host.sh setup [--nfs=SERVER:/SHARE] [--bucket=BUCKET]   mounts, and installs into its own Python
#   host.sh start [--failures=N] train FLAG ...              starts a run that outlives the connection
#   host.sh stop                                             stops it with a checkpoint
#   host.sh logs LINES [--follow]                            shows the end of its log
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root
readonly ENVIRONMENT=$HOME/internvideo-venv LOGS=$HOME/internvideo-logs
readonly WORK=/mnt/work DATA=/mnt/data
# A checkpoint of the largest model must be done by then.
readonly STOP_SECONDS=900

die() {
  printf '%s: %s\n' "$HOSTNAME" "$*" >&2
  exit 1
}

say() {
  printf '%s: %s\n' "$HOSTNAME" "$*"
}

# The number of the process may belong to another one by now.
is_running() {
  [[ -s $LOGS/pid ]] && grep -q supervise "/proc/$(<"$LOGS/pid")/cmdline" 2>/dev/null
}

install_packages() {
  # The image may be updating itself when it starts.
  local wait=DPkg::Lock::Timeout=600
  sudo apt-get -o "$wait" -qq update
  sudo apt-get -o "$wait" -qq install -y "$@"
}

mount_share() {
  ! mountpoint -q "$WORK" || return 0
  command -v mount.nfs >/dev/null || install_packages nfs-common
  sudo mkdir -p "$WORK"
  sudo mount -t nfs "$1" "$WORK"
  # The root of a new share is root's.
  sudo chmod 1777 "$WORK"
}

mount_bucket() {
  ! mountpoint -q "$DATA" || return 0
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc source=https://packages.cloud.google.com/apt
    curl -fsS "$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    install_packages gcsfuse
  fi
  sudo mkdir -p "$DATA"
  sudo chown "$(id -u)" "$DATA"
  gcsfuse --implicit-dirs -o ro "$1" "$DATA"
}

setup() {
  ! is_running || die "a run is going on, whose code this would change: stop.sh first"
  local option
  for option; do
    case $option in
      --nfs=*) mount_share "${option#*=}" ;;
      --bucket=*) mount_bucket "${option#*=}" ;;
      *) die "unknown option $option" ;;
    esac
  done
  python3 -m pip install --quiet --user uv
  local uv=$HOME/.local/bin/uv
  "$uv" venv --quiet --allow-existing --python=3.12 "$ENVIRONMENT"
  "$uv" pip install --quiet --python="$ENVIRONMENT/bin/python" \
    --reinstall-package=internvideo-jax "${root}[tpu]"
  say "$("$ENVIRONMENT/bin/internvideo-jax" --version) is installed"
}

start() {
  [[ -x $ENVIRONMENT/bin/internvideo-jax ]] || die "nothing is installed: setup.sh first"
  ! is_running || die "a run is going on: stop.sh first"
  mkdir -p "$LOGS"
  cd "$root"
  # Each loading process keeps the shards open that it has read from.
  ulimit -n "$(ulimit -Hn)"
  printf '%s %s: %s\n' "$(date -u +%FT%TZ)" "$HOSTNAME" "$*" >>"$LOGS/train.log"
  nohup setsid "$ENVIRONMENT/bin/internvideo-jax" supervise "$@" \
    </dev/null >>"$LOGS/train.log" 2>&1 &
  printf '%s\n' "$!" >"$LOGS/pid"
  say "started"
}

stop() {
  if ! is_running; then
    say "nothing is running"
    return
  fi
  kill -TERM "$(<"$LOGS/pid")"
  local second
  for ((second = 0; second < STOP_SECONDS; second++)); do
    if ! is_running; then
      say "stopped"
      return
    fi
    sleep 1
  done
  die "still running $STOP_SECONDS s after SIGTERM; look at its log"
}

logs() {
  local lines=$1 follow=()
  [[ ${2-} != --follow ]] || follow=(-F)
  [[ -e $LOGS/train.log ]] || die "there is no log yet: run.sh first"
  tail -n "$lines" ${follow[@]+"${follow[@]}"} "$LOGS/train.log" | sed -u "s/^/$HOSTNAME: /"
}

task=${1-}
shift || true
case $task in
  setup) setup "$@" ;;
  start) start "$@" ;;
  stop) stop ;;
  logs) logs "$@" ;;
  *) die "expected setup, start, stop or logs, found '$task'" ;;
esac
