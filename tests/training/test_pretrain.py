import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models, saved_model
from internvideo_jax.config import to_dict
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stages import STAGES, make_stage
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.clips import map_clips, resized
from internvideo_jax.training.stages.pretrain import PretrainConfig
from tests.small_models import ENCODER, noise

IMAGE = dataclasses.replace(ENCODER, num_frames=1, width=16, image_size=12, patch_size=6)
MAE = models.VideoMAEConfig(
    width=24, depth=2, num_heads=2, mlp_dim=16, patch_size=8, image_size=16, num_frames=4
)
CONFIG = PretrainConfig(
    student=models.Stage1StudentConfig(ENCODER, (0, 1), (1,), 16, 8, 24),
    clip_teacher=models.TeacherConfig(IMAGE, (0, 1), per_frame=True),
    mae_teacher=models.VideoMAETeacherConfig(MAE, (1,)),
    mask=MaskConfig(ratio=0.5),
)


@pytest.fixture(scope="module")
def parts():
    """A stage with its variables, teachers and a batch of four clips."""
    stage = AlignmentStage(CONFIG)
    rng = np.random.default_rng(0)
    batch = {
        name: jnp.asarray(rng.integers(0, 256, x.shape, np.uint8))
        for name, x in stage.example_batch(4).items()
    }
    return stage, noise(stage.init, 1), noise(stage.init_frozen, 2), batch


@pytest.fixture(scope="module")
def made(parts):
    stage, _, frozen, batch = parts
    key = jax.random.key(2)
    return jax.jit(lambda f, b: (stage.targets(f, b, key), stage.features(f, b)))(frozen, batch)


@pytest.fixture(scope="module")
def targets(made):
    return made[0]


@pytest.fixture(scope="module")
def features(made):
    return made[1]


def test_the_mask_keeps_half_of_each_frame_and_the_features_of_these_rows(targets, features):
    kept = np.asarray(targets["kept"])
    assert kept.shape == (4, 1 + 2 * 2)
    assert (kept[:, 0] == 0).all()
    assert ((kept[:, 1:3] <= 4) & (kept[:, 3:] > 4)).all()
    for i, rows in enumerate(kept):
        wanted = features["targets/clip_middle"][i][:, rows]
        np.testing.assert_allclose(targets["clip_middle"][i], wanted, atol=1e-5)
        wanted = features["targets/mae"][i][:, rows[1:] - 1]
        np.testing.assert_allclose(targets["mae"][i], wanted, atol=1e-5)
    np.testing.assert_allclose(targets["clip_final"], features["targets/clip_final"], atol=1e-5)


def test_clips_in_several_passes_give_what_they_give_at_once():
    clips = {"x": jnp.arange(12.0).reshape(6, 2), "y": jnp.arange(6)}

    def run(clips):
        return {"sum": clips["x"].sum(1) + clips["y"], "x": clips["x"][:, None]}

    found = jax.jit(lambda clips: map_clips(run, clips, 2))(clips)
    jax.tree.map(np.testing.assert_array_equal, found, run(clips))


def test_passes_must_divide_the_batch(parts):
    _, _, frozen, batch = parts
    stage = AlignmentStage(dataclasses.replace(CONFIG, teacher_batch=3))
    with pytest.raises(ValueError, match=r"divides the 4 clips .* found 3; .*stage\.teacher_batch"):
        jax.eval_shape(stage.targets, frozen, batch, jax.random.key(0))
    with pytest.raises(ValueError, match="divides the 4 clips"):
        stage.check_batch(4, devices=1)
    # Where no teacher runs there are no passes.
    cached = dataclasses.replace(CONFIG, teacher_batch=3, teachers="cached")
    AlignmentStage(cached).check_batch(4, devices=1)


def test_cached_features_stand_for_the_teachers(parts, targets, features):
    batch = parts[-1]
    stage = AlignmentStage(dataclasses.replace(CONFIG, teachers="cached"))
    cached = {**batch, **features}
    expected = stage.example_batch(4)
    assert {n: (x.shape, x.dtype) for n, x in cached.items()} == {
        n: (x.shape, x.dtype) for n, x in expected.items()
    }
    assert stage.init_frozen(jax.random.key(0)) == {}
    found = jax.jit(stage.targets)({}, cached, jax.random.key(2))
    np.testing.assert_array_equal(found["kept"], targets["kept"])
    for name in targets:
        np.testing.assert_allclose(found[name], targets[name], atol=1e-5)


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_other_masks(parts, kind):
    _, _, frozen, batch = parts
    stage = AlignmentStage(dataclasses.replace(CONFIG, mask=MaskConfig(kind, 0.5)))
    shapes = jax.eval_shape(stage.targets, frozen, batch, jax.random.key(2))
    assert shapes["clip_middle"].shape == (4, 2, 5, 16)
    kept = stage.mask.draw(jax.random.key(2), 4, ENCODER.grid, per_frame=True)
    assert (np.diff(kept, axis=1) > 0).all()
    if kind == "tube":
        np.testing.assert_array_equal(kept[:, 1:3] + 4, kept[:, 3:])


def test_the_loss_is_the_weighted_sum_of_its_terms(parts, targets):
    _, variables, _, batch = parts
    config = dataclasses.replace(CONFIG, clip_final_weight=0.5, mae_weight=0.0)
    stage = AlignmentStage(config)
    loss, (terms, extra) = jax.jit(stage.loss)(
        variables["params"], {}, batch, targets, jax.random.key(0)
    )
    assert set(terms) == {"clip_middle", "clip_final"}
    np.testing.assert_allclose(loss, terms["clip_middle"] + 0.5 * terms["clip_final"], rtol=1e-6)
    assert extra == {}


def test_a_student_without_final_decoder_has_no_such_term():
    student = dataclasses.replace(CONFIG.student, clip_final_dim=0)
    assert AlignmentStage(dataclasses.replace(CONFIG, student=student)).weights["clip_final"] == 0


def test_frames_are_resized_as_torch_does():
    """Values of `interpolate(..., mode="bicubic", align_corners=False)`, a = -0.75, on a ramp."""
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (1, 1, 8, 8, 3))
    found = resized(ramp, 16)
    assert found.shape == (1, 1, 16, 16, 3)
    np.testing.assert_allclose(found[0, 0, 5:8, 3, 0], [2.296875, 2.703125, 3.296875], rtol=1e-6)
    assert resized(ramp, 8) is ramp


def test_flops_count_every_frame_of_the_image_tower():
    flops = AlignmentStage(CONFIG).flops()
    assert flops.keys() == {"student", "clip_teacher", "mae_teacher"}
    assert flops["clip_teacher"] == 2 * sum(models.VideoViT(IMAGE).flops().values())
    student = models.Stage1Student(CONFIG.student)
    kept = jax.ShapeDtypeStruct((1, 1 + 2 * 2), "int32")
    assert flops["student"] == 3 * sum(student.flops(student.example_inputs()[0], kept).values())


def test_all_that_does_not_match_is_named():
    teacher = dataclasses.replace(CONFIG.clip_teacher, layers=(1,), per_frame=False)
    with pytest.raises(
        ValueError, match="layers of clip_teacher: expected 2, found 1; token grid of clip_teacher"
    ):
        dataclasses.replace(CONFIG, clip_teacher=teacher)
    mae = dataclasses.replace(CONFIG.mae_teacher, encoder=dataclasses.replace(MAE, image_size=32))
    with pytest.raises(
        ValueError, match=r"token grid of mae_teacher: .*\(2, 2, 2\), .*\(2, 4, 4\)"
    ):
        dataclasses.replace(CONFIG, mae_teacher=mae)
    image = dataclasses.replace(CONFIG.clip_teacher, per_frame=False)
    with pytest.raises(ValueError, match="frames of clip_teacher: expected 2, found 1"):
        dataclasses.replace(CONFIG, clip_teacher=image)


def test_a_stage_is_made_of_a_mapping():
    assert set(STAGES) == {"pretrain", "distill", "classify", "cross_modal", "contrastive"}
    stage = make_stage({"kind": "pretrain", **to_dict(CONFIG)})
    assert isinstance(stage, AlignmentStage)
    assert stage.config == CONFIG.student
    with pytest.raises(ValueError, match="config.stage.kind: .* found 'pretrian'; did you mean"):
        make_stage({"kind": "pretrian"})


def test_teachers_come_from_saved_models(parts, tmp_path):
    _, _, frozen, _ = parts
    clip = jax.tree.map(lambda x: x + 0.5, frozen["clip_teacher"])
    saved_model.save(
        tmp_path / "clip", "teacher", CONFIG.clip_teacher, Preprocessing(VideoPreprocessing()), clip
    )
    # The same encoder for more frames, as a bare one: its table is resized, its name moves.
    longer = dataclasses.replace(MAE, learned_position=True, num_frames=8)
    variables = models.VideoMAE(longer)
    config = dataclasses.replace(
        CONFIG,
        clip_teacher=dataclasses.replace(
            CONFIG.clip_teacher, encoder=dataclasses.replace(IMAGE, dtype="bfloat16")
        ),
        mae_teacher=dataclasses.replace(
            CONFIG.mae_teacher, encoder=dataclasses.replace(MAE, learned_position=True)
        ),
        clip_teacher_path=str(tmp_path / "clip"),
        mae_teacher_path=str(tmp_path / "mae"),
    )
    zeros = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), models.abstract_variables(variables))
    saved_model.save(
        tmp_path / "mae", "videomae", longer, Preprocessing(VideoPreprocessing()), zeros
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    loaded = AlignmentStage(config).load_frozen(mesh, DEFAULT_RULES)
    encoder = loaded["clip_teacher"]["params"]["encoder"]
    wanted = clip["params"]["encoder"]
    assert encoder["pooler"]["proj"]["kernel"].dtype == jnp.bfloat16
    assert encoder["pooler"]["proj"]["bias"].dtype == jnp.float32
    np.testing.assert_allclose(
        encoder["pooler"]["proj"]["kernel"], wanted["pooler"]["proj"]["kernel"], rtol=1e-2
    )
    np.testing.assert_array_equal(encoder["pos_embed"], wanted["pos_embed"])
    table = loaded["mae_teacher"]["params"]["encoder"]["pos_embed"]
    assert table.shape == (1, 8, 24)
    np.testing.assert_allclose(table, 1, rtol=1e-6)


def test_teachers_without_a_path_are_asked_for_together():
    with pytest.raises(ValueError, match="stage.clip_teacher_path and stage.mae_teacher_path, "):
        AlignmentStage(CONFIG).load_frozen(None, DEFAULT_RULES)


def test_a_saved_student_has_a_loadable_encoder(parts, tmp_path):
    stage, variables, _, _ = parts
    stage.save(variables, tmp_path / "model")
    saved = saved_model.load(tmp_path / "model")
    assert isinstance(saved.module, models.Stage1Student)
    assert saved.preprocessing == Preprocessing(VideoPreprocessing(image_size=8, num_frames=2))
    encoder, own = models.video_encoder(saved.module, saved.variables)
    assert encoder.config == ENCODER
    np.testing.assert_array_equal(
        own["params"]["cls_token"], variables["params"]["encoder"]["cls_token"]
    )
