"""Google Cloud as far as launch/tpu uses it: a `gcloud` that knows its commands and flags.

Its slices are folders, `FAKE_CLOUD/hosts/NODE-WORKER`, which are the homes of hosts. What is sent
to one runs there, with tools that write down what they are asked for, and install a package that
only says what it would do. `FAKE_CLOUD/calls.jsonl` has the arguments of all calls.

Of the flags, those are known that the surface of the Google Cloud SDK 528 has for these commands.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# How a queued resource gets on, from one look at it to the next; FAKE_STATES names others.
STATES = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
# Hosts of a slice, at most: more of the same show nothing.
MAX_HOSTS = 2

HOST_TOOL = r"""#!/bin/bash
tool=${0##*/}
printf '%s' "$tool" >>"$HOME/tools.log"
printf ' %s' "$@" >>"$HOME/tools.log"
echo >>"$HOME/tools.log"
case $tool in
  mountpoint) exit 1 ;;
  sudo)
    case "$*" in
      tee*) cat >/dev/null ;;
      *"install -y gcsfuse") cp "$0" "$HOME/new" && mv "$HOME/new" "${0%/*}/gcsfuse" ;;
    esac
    ;;
  lsb_release) echo jammy ;;
  curl) echo key ;;
  python3)
    mkdir -p "$HOME/.local/bin"
    cp "$0" "$HOME/.local/bin/uv"
    ;;
  uv)
    if [[ $1 == venv ]]; then
      mkdir -p "${!#}/bin"
      cp "$0" "${!#}/bin/internvideo-jax"
    else
      # The package, in the folder that was copied.
      package=${!#}
      [[ -f ${package%\[tpu]}/pyproject.toml ]]
    fi
    ;;
  internvideo-jax)
    if [[ $1 == --version ]]; then
      echo "internvideo-jax 9.9"
    else
      printf '%s\0' "$@" >"$HOME/train.arguments"
      echo "training in $PWD"
      trap 'echo stopped; exit 42' TERM
      for ((second = 0; second < 600; second++)); do sleep 0.1; done
    fi
    ;;
esac
"""
HOST_TOOLS = ("sudo", "mountpoint", "mount.nfs", "lsb_release", "curl", "python3")


def install(folder):
    """Makes FAKE_CLOUD; returns the environment in which `gcloud` is the one of this file."""
    for name in ("bin", "host_bin", "hosts"):
        (folder / name).mkdir(parents=True)
    for name in ("gcloud", "kubectl"):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        program.chmod(0o755)
    for name in HOST_TOOLS:
        program = folder / "host_bin" / name
        program.write_text(HOST_TOOL)
        program.chmod(0o755)
    return os.environ | {
        "FAKE_CLOUD": str(folder),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def calls(folder):
    """The arguments of all calls so far."""
    log = folder / "calls.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _parser():
    parser = argparse.ArgumentParser(prog="gcloud", allow_abbrev=False)
    groups = parser.add_subparsers(dest="group", required=True)

    def command(parent, *names):
        for name in names[:-1]:
            found = parent.choices.get(name) if parent.choices else None
            found = found or parent.add_parser(name, allow_abbrev=False)
            if not hasattr(found, "inner"):
                found.inner = found.add_subparsers(required=True)
            parent = found.inner
        leaf = parent.add_parser(names[-1], allow_abbrev=False)
        leaf.set_defaults(command=" ".join(names))
        leaf.add_argument("--project")
        leaf.add_argument("--quiet", action="store_true")
        return leaf

    tpus = ("compute", "tpus", "queued-resources")
    create = command(groups, *tpus, "create")
    create.add_argument("name")
    node = create.add_mutually_exclusive_group(required=True)
    node.add_argument("--node-id")
    node.add_argument("--node-count", type=int)
    create.add_argument("--node-prefix")
    for flag in ("--zone", "--accelerator-type", "--runtime-version"):
        create.add_argument(flag, required=True)
    for flag in ("--spot", "--reserved", "--guaranteed", "--internal-ips", "--async"):
        create.add_argument(flag, action="store_true")
    for flag in ("--network", "--subnetwork", "--service-account", "--labels", "--tags"):
        create.add_argument(flag)
    describe = command(groups, *tpus, "describe")
    describe.add_argument("name")
    describe.add_argument("--zone", required=True)
    describe.add_argument("--format", required=True, choices=["value(state.state)"])
    ssh = command(groups, *tpus, "ssh")
    ssh.add_argument("name")
    ssh.add_argument("--command", dest="line", required=True)
    scp = command(groups, *tpus, "scp")
    scp.add_argument("source")
    scp.add_argument("destination")
    for leaf in (ssh, scp):
        leaf.add_argument("--zone", required=True)
        leaf.add_argument("--node", default="0")
        leaf.add_argument("--worker", default="0")
        leaf.add_argument("--batch-size")
        for flag in ("--tunnel-through-iap", "--internal-ip"):
            leaf.add_argument(flag, action="store_true")
    delete = command(groups, *tpus, "delete")
    delete.add_argument("name")
    delete.add_argument("--zone", required=True)
    delete.add_argument("--force", action="store_true")
    delete.add_argument("--async", action="store_true")

    command(groups, "services", "enable").add_argument("names", nargs="+")
    buckets = command(groups, "storage", "buckets", "create")
    buckets.add_argument("url")
    buckets.add_argument("--location", required=True)
    buckets.add_argument("--uniform-bucket-level-access", action="store_true")
    copy = command(groups, "storage", "cp")
    copy.add_argument("urls", nargs="+")
    copy.add_argument("--recursive", action="store_true")
    filestore = command(groups, "filestore", "instances", "create")
    filestore.add_argument("name")
    for flag in ("--zone", "--tier", "--file-share", "--network"):
        filestore.add_argument(flag, required=True)
    filestore = command(groups, "filestore", "instances", "describe")
    filestore.add_argument("name")
    filestore.add_argument("--zone", required=True)
    filestore.add_argument("--format", required=True)
    return parser


def _number_of_hosts(accelerator_type):
    generation, _, size = accelerator_type.rpartition("-")
    chips = int(size) // (2 if generation in ("v4", "v5p") else 1)
    assert generation in ("v4", "v5litepod", "v5p", "v6e"), accelerator_type
    is_one = chips <= (4 if generation in ("v4", "v5p") else 8)
    return 1 if is_one else min(chips // 4, MAX_HOSTS)


def _create(args, folder):
    if args.node_count is not None and args.node_count < 2:
        raise SystemExit("Node count must be greater than 1")
    if args.node_prefix and not args.node_count:
        raise SystemExit("Can only specify --node-prefix if --node-count is also specified.")
    (folder / args.name).write_text(os.environ.get("FAKE_STATES", STATES))
    for node in range(args.node_count or 1):
        for worker in range(_number_of_hosts(args.accelerator_type)):
            (folder / "hosts" / f"{node}-{worker}").mkdir()


def _state(args, folder):
    """The state at this look at it; the last one stays."""
    place = folder / args.name
    if not place.exists():
        raise SystemExit(f"NOT_FOUND: {args.name}")
    first, _, rest = place.read_text().partition(" ")
    if rest:
        place.write_text(rest)
    return first


def _hosts(args, folder):
    if _state(args, folder) != "ACTIVE":
        raise SystemExit(f"{args.name} is not ACTIVE")
    found = []
    for home in sorted((folder / "hosts").iterdir()):
        node, worker = home.name.split("-")
        if args.node in ("all", node) and args.worker in ("all", worker):
            found.append(home)
    if not found:
        raise SystemExit(f"no host {args.node} {args.worker}")
    return found


def _ssh(args, folder):
    # As the connection does: split at blanks, and put together again.
    line = " ".join(args.line.split(" "))
    running = []
    for home in _hosts(args, folder):
        environment = {
            "HOME": str(home),
            "HOSTNAME": f"host-{home.name}",
            "PATH": f"{folder / 'host_bin'}:/usr/bin:/bin",
        }
        running.append(subprocess.Popen(["sh", "-c", line], cwd=home, env=environment))
    # The first failure counts, after all of them.
    codes = [process.wait() for process in running]
    raise SystemExit(next(filter(None, codes), 0))


def _scp(args, folder):
    args.name, _, path = args.destination.partition(":")
    for home in _hosts(args, folder):
        shutil.copy(args.source, home / path)


def _delete(args, folder):
    if _state(args, folder) == "ACTIVE" and not args.force:
        raise SystemExit("it has nodes: --force")
    (folder / args.name).unlink()
    for home in (folder / "hosts").iterdir():
        pid = home / "internvideo-logs" / "pid"
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGTERM)
        home.rename(folder / f"deleted-{args.name}-{home.name}")


def main():
    folder = Path(os.environ["FAKE_CLOUD"])
    with (folder / "calls.jsonl").open("a") as log:
        log.write(json.dumps(sys.argv[1:]) + "\n")
    if sys.argv[1] == "kubectl":
        assert sys.argv[2:] == ["apply", "--filename=-"], sys.argv
        (folder / "manifest.yaml").write_text(sys.stdin.read())
        return
    args = _parser().parse_args(sys.argv[2:])
    if args.command.endswith("queued-resources create"):
        _create(args, folder)
    elif args.command.endswith("queued-resources describe"):
        print(_state(args, folder))
    elif args.command.endswith("ssh"):
        _ssh(args, folder)
    elif args.command.endswith("scp"):
        _scp(args, folder)
    elif args.command.endswith("delete"):
        _delete(args, folder)
    elif args.command == "filestore instances describe":
        print("10.0.0.2")


if __name__ == "__main__":
    main()
