# shellcheck shell=bash disable=SC2034  # the scripts use the variables
# What the scripts of this folder share. To be sourced by them, after `set -euo pipefail`.

# All of them take --name, --zone, --project, --dry_run and --help; what else there is, and what
# comes after `--`, is in OPTIONS and REST.
NAME=""
ZONE=""
PROJECT=""
DRY_RUN=0
QUIET=0
OPTIONS=()
REST=()

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# parse "$@": sets the variables above. The script defines `usage`, which prints its help.
parse() {
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit 0
        ;;
      --name=*) NAME=${1#*=} ;;
      --zone=*) ZONE=${1#*=} ;;
      --project=*) PROJECT=${1#*=} ;;
      --dry_run) DRY_RUN=1 ;;
      --)
        shift
        REST=("$@")
        return
        ;;
      --*) OPTIONS+=("$1") ;;
      *) die "expected options --OPTION=VALUE, found '$1'; --help lists them" ;;
    esac
    shift
  done
}

unknown() {
  die "unknown option '$1'; --help lists the known ones"
}

# What is missing is named, with an example.
need() {
  [[ -n $2 ]] || die "expected $1"
}

need_name() {
  need "$1" "$NAME"
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "--name=$NAME: expected a lower-case letter, then letters, digits and dashes"
}

need_slice() {
  need_name "--name=NAME, the name of the queued resource"
  need "--zone=ZONE, for example us-west4-a" "$ZONE"
}

# Checks the flags of train in REST.
train_flags() {
  local flag config="" workdir=""
  for flag in ${REST[@]+"${REST[@]}"}; do
    case $flag in
      --config=*) config=${flag#*=} ;;
      --workdir=*) workdir=${flag#*=} ;;
      --*) ;;
      *) die "$flag: expected flags of train as --NAME=VALUE" ;;
    esac
  done
  need "--config=FILE after --" "$config"
  need "--workdir=DIR after --" "$workdir"
  [[ $workdir == /* ]] ||
    die "--workdir=$workdir: expected a path from / on the hosts, in a folder that all of them mount"
}

number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1=$2: expected a whole number of at least 1"
}

# quoted WORD...: sets LINE to the words as a line that any shell reads as these.
quoted() {
  local word quote="'\\''"
  LINE=""
  for word; do
    if [[ ! $word =~ ^[-A-Za-z0-9_./:=@%+,]+$ ]]; then
      word="'${word//\'/$quote}'"
    fi
    LINE+="${LINE:+ }$word"
  done
}

# call COMMAND...: runs it, after printing it on stderr unless QUIET; with --dry_run only prints it, on
# stdout.
call() {
  quoted "$@"
  if ((DRY_RUN)); then
    printf '%s\n' "$LINE"
  else
    ((QUIET)) || printf '+ %s\n' "$LINE" >&2
    "$@"
  fi
}

# queued_resources VERB ARGUMENT...: of gcloud, for the zone and the project.
queued_resources() {
  local where=("--zone=$ZONE")
  [[ -z $PROJECT ]] || where+=("--project=$PROJECT")
  call gcloud compute tpus queued-resources "$@" "${where[@]}"
}

# on_hosts NODES WORKERS COMMAND...: runs it on these hosts ("all", or a number of each).
on_hosts() {
  local nodes=$1 workers=$2
  shift 2
  quoted "$@"
  queued_resources ssh "$NAME" "--node=$nodes" "--worker=$workers" "--command=$LINE"
}

# slice GENERATION:AxB[xC]: sets GENERATION, SIZES, CHIPS and HOST_CHIPS, the chips of one host.
# The names are those of `internvideo-jax compile_report --topology`.
slice() {
  [[ $1 =~ ^(v4|v5e|v5p|v6e):([1-9][0-9]*(x[1-9][0-9]*){1,2})$ ]] ||
    die "--topology=$1: expected GENERATION:AxB[xC] of v4, v5e, v5p or v6e, for example v5e:16x16"
  GENERATION=${BASH_REMATCH[1]}
  SIZES=${BASH_REMATCH[2]}
  local size
  CHIPS=1
  for size in ${SIZES//x/ }; do
    CHIPS=$((CHIPS * size))
  done
  # v5e and v6e have a host with eight chips, for slices of just that size.
  HOST_CHIPS=$((CHIPS < 4 ? CHIPS : 4))
  if [[ $GENERATION == v[56]e ]] && ((CHIPS == 8)); then
    HOST_CHIPS=8
  fi
  readonly GENERATION SIZES CHIPS HOST_CHIPS
}
