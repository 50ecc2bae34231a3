"""Whole stage-2 runs: on one device, on eight in two processes, and killed."""

import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.training.metrics import read_metrics
from tests.processes import outputs, system
from tests.training.cross_modal_program import STEPS, WORDS

PROGRAM = Path(__file__).with_name("cross_modal_program.py")


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


@pytest.mark.slow
def test_eight_devices_in_two_processes_do_as_one_and_go_on_after_a_kill(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    one, eight, killed = (tmp_path / name for name in ("one", "eight", "killed"))
    # The two go on to a second run: what they have compiled serves both.
    with (
        system(1, 1, PROGRAM, vocabulary, one) as alone,
        system(2, 4, PROGRAM, vocabulary, eight, killed, "--kill_at=14") as together,
    ):
        said = [process.communicate(timeout=600) for process in together]
        # When one is killed, the other may end because of that.
        codes = [process.returncode for process in together]
        assert -signal.SIGKILL in codes, said
        assert 0 not in codes, said
        outputs(alone)
    assert len(losses(one)) == STEPS
    # Two summation orders of float32.
    np.testing.assert_allclose(losses(one), losses(eight), rtol=1e-5)

    assert STEPS not in [line["step"] for line in read_metrics(killed / "metrics.jsonl")]
    with system(2, 4, PROGRAM, vocabulary, killed) as together:
        said = [process.communicate(timeout=600) for process in together]
        assert [process.returncode for process in together] == [0, 0], said
    # The save of step 12 may have been under way.
    assert re.search("from step (6|12)$", said[0][1], re.MULTILINE)
    assert losses(killed) == losses(eight)
    models = [saved_model.load(workdir / "model").variables for workdir in (killed, eight)]
    jax.tree.map(np.testing.assert_array_equal, *models)
