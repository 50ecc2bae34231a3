"""What befalls the processes of a run on several hosts, which are processes of this one.

FAULTS=N draws other steps, processes and orders than usual; `make faults` repeats the tests so.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.training.metrics import read_metrics
from tests.processes import ROOT, ends, system

PROGRAM = Path(__file__).with_name("toy_program.py")
# Of the program.
STEPS = 48


def drawn_faults():
    """All kinds at drawn steps of drawn processes, in drawn order."""
    rng = np.random.default_rng(int(os.environ.get("FAULTS", "0")))
    # Process 0, where all meet, and another one are killed. The first faults come before there are
    # two checkpoints, one of which to damage.
    one, other = rng.permutation(2)
    first = [("kill", one), ("hang", rng.integers(2))]
    then = [("kill", other), *((kind, rng.integers(2)) for kind in ("notice", "damage", "blind"))]
    faults = [*rng.permutation(first), *rng.permutation(then)]
    # A notice counts some steps later.
    steps = 3 + 7 * np.arange(len(faults)) + rng.integers(0, 3, len(faults))
    return [f"{kind}@{step}:{place}" for (kind, place), step in zip(faults, steps, strict=True)]


def logged(workdir):
    timed = ("seconds_per_step", "examples_per_second", "data_wait")
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: x for name, x in line.items() if name not in timed} for line in lines]


def checksums(workdir):
    """Of weights, moments and averages after the last step."""
    description = workdir / "checkpoints" / str(STEPS) / "meta" / "metadata"
    return json.loads(description.read_text())["checksums"]


@pytest.mark.slow
def test_supervised_processes_end_as_an_unbroken_run_whatever_befalls_them(tmp_path):
    """Kills, a hang, a notice, a damaged checkpoint, and one that a process cannot read."""
    faults = drawn_faults()
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    with (
        system(2, 1, PROGRAM, unbroken) as alone,
        system(2, 1, PROGRAM, broken, *faults, "--supervised=20") as hurt,
    ):
        found = ends(alone)
        assert [end.code for end in found] == [0, 0], found
        found = ends(hurt, 600)
    told = "\n\n".join([*faults, *(end.error for end in found)])
    assert [end.code for end in found] == [0, 0], told
    # All of them have come, and had their effect.
    assert {path.name.removeprefix("broken-") for path in tmp_path.glob("broken-*")} == set(faults)
    for number, end in enumerate(found):
        assert "was preempted (exit code 42)" in end.error, told
        assert f"process {number} of 2 has been at " in end.error, told
    of_hang = next(fault for fault in faults if fault.startswith("hang"))
    assert "in hang\n" in found[int(of_hang[-1])].error, told
    of_blind = next(fault for fault in faults if fault.startswith("blind"))
    who = "process 1: " if of_blind.endswith("1") else ""
    kept = r"kept as \d+\.broken, resuming from step \d+"
    assert re.search(rf"cannot be read \({who}.*Input/output error\): {kept}", found[0].error), told
    assert len(re.findall(kept, found[0].error)) == 2, told
    # The curve and the weights, bit for bit.
    assert logged(broken) == logged(unbroken)
    assert [line["step"] for line in logged(broken)] == list(range(1, STEPS + 1))
    assert checksums(broken) == checksums(unbroken)


@pytest.mark.slow
def test_what_fails_at_the_same_step_again_and_again_is_given_up(tmp_path):
    with system(2, 1, PROGRAM, tmp_path / "run", "kill@7:1!", "--supervised=3") as hurt:
        # The other one looks for this a last time.
        [end] = ends(hurt[1:])
    assert "after the checkpoint of step 4" in end.error
    assert "given up: 3 failures without a new checkpoint" in end.error
    assert end.code
    assert not (tmp_path / "run" / "model").exists()


# Backtracks for longer than anybody waits, and lets nothing else of Python run.
STUCK = """
import re, sys, time
from internvideo_jax.training import watchdog

watchdog._GRACE = 0.5
with watchdog.Watchdog(1.0, "process 3 of 8") as watched:
    for number in range(3):
        watched.begin(f"step {number}")
        time.sleep(0.5)
    if sys.argv[1] == "native":
        re.match("(a+)+$", 50 * "a" + "b")
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["python", "native"])
def test_a_process_that_hangs_says_where_and_ends(kind):
    done = subprocess.run(
        [sys.executable, "-c", STUCK, kind], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert 'File "<string>", line' in done.stderr
    is_told = "process 3 of 8 has been at 'step 2' for 1 s: it ends" in done.stderr
    assert is_told == (kind == "python")
