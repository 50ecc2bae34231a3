"""Some hundred inputs of every fuzz target; `make fuzz N=1000000` runs more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.fuzz.harness import Target, all_targets

# On average over the targets.
INPUTS = 100
TARGETS = all_targets()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one run over all targets has found, in a process of which others may be forked."""
    output = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, "-m", "tests.fuzz", "--jobs=1", f"--output={output}"]
    command += [f"--inputs={INPUTS * len(TARGETS)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (output / "report.json").exists(), done.stderr
    report = json.loads((output / "report.json").read_text())
    return {result["target"]: result for result in report["targets"]}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_and_hostile_inputs_are_read_or_refused(results, name):
    result = results[name]
    assert result["faults"] == []
    assert result["accepted"] + result["refused"] == result["inputs"] > 20
    assert result["refused"] > 0
    assert result["peak_bytes"] < harness.MEMORY_BYTES


@pytest.fixture(scope="module")
def misbehaviour():
    command = [sys.executable, "-m", "tests.fuzz.misbehaving"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["foreign", "memory", "hang", "crash", "execution", ""])
def test_the_harness_notices_every_kind_of_fault(misbehaviour, kind):
    for name, counts in misbehaviour[kind].items():
        found = dict(zip(harness.KINDS, counts, strict=True))
        assert found == dict.fromkeys(harness.KINDS, 0) | ({kind: 2} if kind else {}), name


def test_an_input_is_made_of_its_number_alone():
    target = Target("any", lambda: [b"0123456789"], lambda data, folder: None)
    inputs = [target.input(target.seeds(), number) for number in range(50)]
    assert inputs == [target.input(target.seeds(), number) for number in range(50)]
    assert len(set(inputs)) > 40
