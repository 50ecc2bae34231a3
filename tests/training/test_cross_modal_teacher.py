"""Stage 2 whose video tower goes on following a teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models, saved_model
from internvideo_jax.config import to_dict
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from internvideo_jax.training.loop import train
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.metrics import read_metrics
from internvideo_jax.training.stages import make_stage
from internvideo_jax.training.stages.clips import normalized, resized
from internvideo_jax.training.stages.cross_modal import CrossModalStage
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig, LossWeights
from tests.small_models import ENCODER, STAGE2, noise
from tests.training.test_cross_modal import make_batch, write_words

# Of single frames, larger than the student's.
TEACHER = models.TeacherConfig(
    dataclasses.replace(ENCODER, width=16, num_frames=1, patch_size=8, image_size=16),
    layers=(0, 1),
    per_frame=True,
)
VISION = dataclasses.replace(STAGE2["visual"].vision, clip_target_dim=16)
CONFIG = CrossModalConfig(
    dataclasses.replace(STAGE2["visual"], vision=VISION),
    weights=LossWeights(vtm=0.0, mlm=0.0, uta_middle=0.5, uta_final=2.0),
    video_mask=MaskConfig("attention", 0.5),
    image_mask=MaskConfig("random", 0.5),
    max_text_length=6,
    match_group=2,
    teacher=TEACHER,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The config with its vocabulary and its teacher, which is saved."""
    folder = tmp_path_factory.mktemp("teacher")
    variables = noise(CrossModalStage(CONFIG).init_frozen, 3)["teacher"]
    preprocessing = Preprocessing(VideoPreprocessing(image_size=16, num_frames=1))
    saved_model.save(folder / "model", "teacher", TEACHER, preprocessing, variables)
    return dataclasses.replace(
        CONFIG, vocabulary=write_words(folder), teacher_path=str(folder / "model")
    )


@pytest.mark.parametrize("media", ["video", "image"])
def test_the_alignment_is_with_the_teachers_tokens_that_are_kept(media, config):
    stage = CrossModalStage(config, media)
    params, frozen = noise(stage.init, 0)["params"], noise(stage.init_frozen, 3)
    batch = make_batch(stage)

    def aligned(params, frozen):
        targets = stage.targets(frozen, batch, jax.random.key(1))
        _, (metrics, _) = stage.loss(params, {}, batch, targets, jax.random.key(2))
        terms = metrics[f"{media}/uta_middle"], metrics[f"{media}/uta_final"]
        return sum(terms), (terms, targets)

    gradients, (terms, targets) = jax.jit(jax.grad(aligned, has_aux=True))(params, frozen)
    # Half of the four places in each frame.
    assert targets["kept"].shape == (4, 1 + {"video": 4, "image": 2}[media])

    @jax.jit
    def by_hand(params, frozen, kept):
        video = normalized(batch[media])
        student = stage.module.apply({"params": params}, video, kept, method="encode_video")
        teacher = models.Teacher(TEACHER).apply(frozen["teacher"], resized(video, 16))
        rows = jnp.take_along_axis(teacher.middle, kept[None, :, :, None], axis=2)
        pairs = (student.clip_middle, rows), (student.clip_final, teacher.final)
        return [jnp.mean(jnp.sum(jnp.square(a - b), -1)) for a, b in pairs]

    # Squared distances of unit vectors.
    np.testing.assert_allclose(terms, by_hand(params, frozen, targets["kept"]), rtol=1e-5)
    touched = {name for name, x in gradients.items() if any(map(np.any, jax.tree.leaves(x)))}
    assert touched == {"vision"}
    assert np.any(gradients["vision"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"])


def test_clips_of_other_places_than_the_teachers_are_refused():
    stage = CrossModalStage(CONFIG)
    # It sees frames one by one, any number of them.
    assert stage.of_media("video", num_frames=4).grid == (4, 2, 2)
    with pytest.raises(ValueError, match="3x3 tokens that image of 1 frames of 12 .* found .*2x2"):
        stage.of_media("image", image_size=12)


def test_a_teacher_that_is_not_there_is_told_before_the_run(config):
    with pytest.raises(ValueError, match=r"stage\.teacher_path, found none"):
        CrossModalStage(dataclasses.replace(config, teacher_path=None)).check_weights()
    CrossModalStage(config).check_weights()


@pytest.mark.slow
def test_a_run_follows_its_teacher_which_neither_checkpoints_nor_the_model_hold(config, tmp_path):
    stage = make_stage({"kind": "cross_modal", **to_dict(config)})
    batch = make_batch(stage)

    def batches(step):
        while True:
            yield batch

    run = TrainConfig(
        batch_size=4,
        steps=3,
        warmup_steps=1,
        optimizer=OptimizerConfig(lr=0.01),
        checkpoint=CheckpointConfig(every_steps=1),
        log_every=1,
    )
    devices = jax.devices()[:1]
    assert train(stage, run, batches, tmp_path, run_config={}, devices=devices)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    names = {name for name in lines[-1] if name.startswith("video/")}
    assert names == {"video/vtc", "video/uta_middle", "video/uta_final"}
    for line in lines:
        parts = line["video/vtc"], 0.5 * line["video/uta_middle"], 2 * line["video/uta_final"]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-5)
    # The student's decoders turn to the teacher within few steps.
    assert lines[-1]["video/uta_final"] < lines[0]["video/uta_final"]

    state = (tmp_path / "checkpoints" / "3" / "state" / "_METADATA").read_bytes()
    assert b"clip_decoder" in state
    assert b"teacher" not in state
    params = saved_model.load(tmp_path / "model").variables["params"]
    assert params.keys() == models.abstract_variables(stage.module)["params"].keys()
    # It is whole as before.
    saved_model.check(config.teacher_path)
