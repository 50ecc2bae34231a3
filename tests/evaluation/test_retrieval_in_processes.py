"""Retrieval measured by several processes, as in a training run on a pod."""

import numpy as np
import pytest

from tests.evaluation.eight_device_cases import measured
from tests.processes import outputs, system
from tests.small_models import save_stage2

WORKER = """
import sys
import jax, numpy as np
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from tests.evaluation.eight_device_cases import batches, measured
from tests.processes import join_system

join_system()
# Neighbours on the mesh are of different processes, as where a machine has a square of chips.
devices = np.reshape(jax.devices(), (2, 4)).T.ravel().tolist()
share = [
    {name: x[jax.process_index() :: 2] for name, x in batch.items()} for batch in batches()
]
evaluator, rows = measured(sys.argv[1], make_mesh(MeshConfig(data=4, fsdp=2), devices), share)
scores = rows.output.scores
np.savez(
    f"{sys.argv[2]}/{jax.process_index()}.npz",
    **{f"{kind}/{way}": getattr(x, way) for kind, x in scores.items()
       for way in ("of_texts", "of_media")},
    num_pairs=rows.output.num_pairs,
    clips=rows.columns["index"],
)
"""


@pytest.mark.slow
def test_processes_share_clips_and_pairs_and_find_the_same(tmp_path):
    model = save_stage2(tmp_path)
    with system(2, 4, "-c", WORKER, model, tmp_path) as running:
        _, alone = measured(model, None)
        outputs(running)
    for process in range(2):
        with np.load(tmp_path / f"{process}.npz") as found:
            np.testing.assert_array_equal(found["clips"], alone.columns["index"])
            assert found["num_pairs"] == alone.output.num_pairs > 0
            for kind, scores in alone.output.scores.items():
                for way in ("of_texts", "of_media"):
                    expected = getattr(scores, way)
                    np.testing.assert_allclose(found[f"{kind}/{way}"], expected, atol=2e-5)
