import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models, saved_model
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.distill import DistillConfig
from tests.small_models import ENCODER, noise

TEACHER = dataclasses.replace(ENCODER, width=16, depth=3)
CONFIG = DistillConfig(
    student=models.DistillStudentConfig(ENCODER, (0, 1), 16, 8),
    teacher=models.TeacherConfig(TEACHER, (0, 2)),
    mask=MaskConfig(ratio=0.5),
)


@pytest.fixture(scope="module")
def parts():
    stage = AlignmentStage(CONFIG)
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, stage.example_batch(3)["video"].shape, np.uint8)
    return stage, noise(stage.init_frozen, 2), {"video": jnp.asarray(video)}


def test_the_mask_covers_the_whole_clip_and_targets_are_the_teachers_rows(parts):
    stage, frozen, batch = parts
    assert batch["video"].shape == (3, 2, 8, 8, 3)
    targets, features = jax.jit(
        lambda f, b: (stage.targets(f, b, jax.random.key(2)), stage.features(f, b))
    )(frozen, batch)
    kept = np.asarray(targets["kept"])
    assert kept.shape == (3, 1 + 4)
    assert features["targets/attention"].shape == (3, 1, 8)
    assert set(targets) == {"kept", "clip_middle", "clip_final"}
    for i, rows in enumerate(kept):
        wanted = features["targets/clip_middle"][i][:, rows]
        np.testing.assert_allclose(targets["clip_middle"][i], wanted, atol=1e-5)


@pytest.mark.slow
def test_the_student_learns_the_teachers_features(parts):
    stage, frozen, batch = parts
    params = noise(stage.init, 1)["params"]

    @jax.jit
    def step(params, frozen, batch, key):
        targets = stage.targets(frozen, batch, key)
        (loss, (terms, _)), gradients = jax.value_and_grad(stage.loss, has_aux=True)(
            params, {}, batch, targets, key
        )
        return loss, terms, jax.tree.map(lambda p, g: p - 0.3 * g, params, gradients)

    losses = []
    for i in range(8):
        loss, terms, params = step(params, frozen, batch, jax.random.key(i))
        losses.append(float(loss))
        np.testing.assert_allclose(loss, terms["clip_middle"] + terms["clip_final"], rtol=1e-5)
    assert losses[-1] < 0.8 * losses[0]


def test_the_teacher_may_be_the_encoder_of_a_student_for_fewer_frames(parts, tmp_path):
    encoder = dataclasses.replace(TEACHER, num_frames=1)
    config = models.Stage1StudentConfig(encoder, (1,), (1,), 12, 8, 20)
    module = models.Stage1Student(config)
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), models.abstract_variables(module))
    saved_model.save(
        tmp_path / "teacher", "stage1_student", config, Preprocessing(VideoPreprocessing()), ones
    )
    stage = AlignmentStage(dataclasses.replace(CONFIG, teacher_path=str(tmp_path / "teacher")))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    loaded = stage.load_frozen(mesh, DEFAULT_RULES)
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, parts[1])
    assert all((np.asarray(x) == 1).all() for x in jax.tree.leaves(loaded))
    with pytest.raises(ValueError, match="in stage.teacher_path, found none"):
        AlignmentStage(CONFIG).load_frozen(mesh, DEFAULT_RULES)
