import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from internvideo_jax import models, saved_model
from internvideo_jax.evaluation.retrieval.options import RetrievalOptions
from internvideo_jax.models.stage2 import Stage2
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.optimizer import map_paths
from internvideo_jax.training.stages.cross_modal import CrossModalStage
from internvideo_jax.training.stages.cross_modal_config import (
    CrossModalConfig,
    LossCaptions,
    LossWeights,
)
from tests.small_models import BEATS, BERT, ENCODER, STAGE2, noise, noise_like

ALL = LossWeights(*[1.0] * 10)
CONFIG = CrossModalConfig(
    STAGE2["audiovisual"],
    weights=dataclasses.replace(ALL, avc=0.0, vtc=0.5, avmlm=2.0),
    captions=LossCaptions(atc="sound", avtm="sound"),
    video_mask=MaskConfig("random", 0.5),
    max_text_length=6,
    match_group=2,
)
VISUAL = dataclasses.replace(
    CONFIG, model=STAGE2["visual"], weights=LossWeights(), captions=LossCaptions()
)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(15)))


def write_words(folder, words=WORDS):
    path = folder / "vocab.txt"
    path.write_text("\n".join(words))
    return str(path)


def make_batch(stage, rows=4):
    rng = np.random.default_rng(0)
    draws = {
        "uint8": lambda shape: rng.integers(0, 256, shape, np.uint8),
        "int32": lambda shape: rng.integers(1, 20, shape, np.int32),
        "float32": lambda shape: rng.standard_normal(shape, np.float32),
    }
    batch = {n: draws[x.dtype.name](x.shape) for n, x in stage.example_batch(rows).items()}
    return batch | {"clip_id": np.arange(rows, dtype=np.int32)}


@pytest.fixture(scope="module")
def variables():
    return noise(CrossModalStage(CONFIG).init, 0)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The config with its vocabulary."""
    words = write_words(tmp_path_factory.mktemp("words"))
    return dataclasses.replace(CONFIG, vocabulary=words)


def run(stage, variables, batch):
    def loss(params, batch):
        targets = stage.targets({}, batch, jax.random.key(1))
        return stage.loss(params, {}, batch, targets, jax.random.key(2))

    return jax.jit(loss)(variables["params"], batch)


def test_batches_hold_what_their_media_and_losses_ask_for():
    stage = CrossModalStage(CONFIG)
    assert stage.media == ("video", "image", "audio", "audio_video")
    fields = {media: list(stage.of_media(media).example_batch(2)) for media in stage.media}
    assert fields == {
        "video": ["video", "text", "clip_id"],
        "image": ["image", "text", "clip_id"],
        "audio": ["audio", "text/sound", "text", "clip_id"],
        "audio_video": ["video", "audio", "text", "text/sound", "clip_id"],
    }
    image = stage.of_media("image").example_batch(2)["image"]
    assert image.shape == (2, 1, 8, 8, 3)
    longer = stage.of_media("video", num_frames=4, image_size=16).example_batch(2)["video"]
    assert longer.shape == (2, 4, 16, 16, 3)


def test_the_loss_is_the_weighted_sum_of_what_the_media_allow(variables, config):
    stage = CrossModalStage(config, "audio_video")
    total, (metrics, extra) = run(stage, variables, make_batch(stage))
    weights = CONFIG.weights.terms
    assert "avc" not in weights
    assert metrics.keys() == {*(f"audio_video/{term}" for term in weights), "temperature"}
    summed = sum(weight * metrics[f"audio_video/{term}"] for term, weight in weights.items())
    np.testing.assert_allclose(total, summed, rtol=1e-6)
    assert np.isfinite(total)
    assert extra == {}


def test_only_losses_of_the_media_are_computed(variables, config):
    terms = {"image": {"vtc", "vtm", "mlm"}, "audio": {"atc", "atm", "amlm"}}
    for media, wanted in terms.items():
        stage = CrossModalStage(config, media)
        targets = jax.eval_shape(stage.targets, {}, make_batch(stage), jax.random.key(0))
        _, (metrics, _) = jax.eval_shape(
            stage.loss, variables["params"], {}, make_batch(stage), targets, jax.random.key(0)
        )
        assert metrics.keys() == {*(f"{media}/{term}" for term in wanted), "temperature"}


def test_masks_keep_their_share_of_clips_and_images():
    stage = CrossModalStage(dataclasses.replace(CONFIG, image_mask=MaskConfig("random", 0.25)))
    for media, kept in {"video": 1 + 4, "image": 1 + 3}.items():
        own = stage.of_media(media)
        found = jax.eval_shape(own.targets, {}, make_batch(own), jax.random.key(0))
        assert found["kept"].shape == (4, kept)
    assert stage.of_media("audio").targets({}, {}, jax.random.key(0)) == {}


def test_the_temperature_is_kept_within_its_bounds():
    stage = CrossModalStage(VISUAL)
    for value, kept in {0.7: 0.5, 0.0: 0.001, 0.1: 0.1}.items():
        params = {"temperature": jnp.float32(value), "other": jnp.float32(9)}
        assert stage.bounded(params) == {"temperature": np.float32(kept), "other": 9}
    assert stage.bounded({"other": 9}) == {"other": 9}


def test_media_without_a_loss_are_refused():
    stage = CrossModalStage(VISUAL)
    assert stage.media == ("video", "image")
    with pytest.raises(ValueError, match=r"media of video, image, .* found 'audio'"):
        stage.of_media("audio")
    by_tubes = dataclasses.replace(STAGE2["visual"].vision.encoder, tubelet_size=2)
    model = dataclasses.replace(
        STAGE2["visual"], vision=dataclasses.replace(STAGE2["visual"].vision, encoder=by_tubes)
    )
    # A single frame makes no tubelet.
    assert CrossModalStage(dataclasses.replace(VISUAL, model=model)).media == ("video",)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"weights": LossWeights(vtc=0, vtm=0, mlm=0)}, "weight above 0"),
        (
            {"weights": LossWeights(atm=1.0)},
            r"match_heads: .* model.audio: expected an audio",
        ),
        ({"initial_audio": "beats"}, "initial_audio: expected none"),
        ({"weights": LossWeights(uta_final=1.0)}, "teacher: expected one"),
        ({"video_mask": MaskConfig("attention", 0.8)}, "teacher: expected one"),
        ({"max_text_length": 9}, "max_text_length: expected 2 to 8, found 9"),
        ({"mask_probability": 0.0}, "mask_probability"),
        ({"match_group": -1}, "match_group: expected at least 0"),
        ({"open_blocks": -1}, "open_blocks: expected at least 0"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes, found):
    with pytest.raises(ValueError, match=found):
        dataclasses.replace(VISUAL, **changes)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="at least 0, found {'vtm': -1.0}"):
        LossWeights(vtm=-1.0)


def test_a_vocabulary_must_be_the_models(tmp_path):
    config = dataclasses.replace(VISUAL, vocabulary=write_words(tmp_path))
    assert CrossModalStage(config).vocabulary == (20, 0, 2, 4)
    unset = CrossModalStage(VISUAL)
    with pytest.raises(ValueError, match="the file of the model's 20 words, found none"):
        unset.loss({}, {}, {}, {}, jax.random.key(0))
    write_words(tmp_path, (*WORDS, "one more"))
    with pytest.raises(ValueError, match="expected 20 words .* found 21 with .PAD. on line 1 in"):
        CrossModalStage(config)


def test_the_last_blocks_may_be_trained_alone():
    stage = CrossModalStage(dataclasses.replace(CONFIG, open_blocks=1))
    shapes = models.abstract_variables(stage.module)["params"]
    trained = map_paths(lambda path, _: stage.trainable(path), shapes)
    vision = trained["vision"]["encoder"]
    assert not any(jax.tree.leaves([vision["patch_embed"], vision["pos_embed"]]))
    np.testing.assert_array_equal(vision["blocks"]["mlp"]["fc1"]["kernel"], [False, True])
    assert all(jax.tree.leaves(vision["pooler"]))
    text, audio = trained["text"], trained["audio"]
    assert not any(jax.tree.leaves(text["embeddings"]))
    np.testing.assert_array_equal(text["text_blocks"]["mlp"]["fc1"]["bias"], [False, True])
    assert all(jax.tree.leaves([text["fusion_blocks"], trained["audio_video_match_head"]]))
    np.testing.assert_array_equal(audio["blocks"]["mlp"]["fc1"]["bias"], [False, True])
    assert not any(jax.tree.leaves(audio["patch_embed"]))
    assert CrossModalStage(CONFIG).trainable("vision/encoder/cls_token")


def test_groups_of_negatives_must_suit_batches_that_are_matched():
    stage = CrossModalStage(dataclasses.replace(CONFIG, match_group=4))
    stage.check_batch(8, devices=4)
    for rows, devices in ((6, 1), (24, 4)):
        with pytest.raises(ValueError, match=r"found 4; set --config\.stage\.match_group"):
            stage.check_batch(rows, devices)
    CrossModalStage(dataclasses.replace(CONFIG, match_group=0)).check_batch(6, devices=1)
    unmatched = LossWeights(vtc=1.0, vtm=0.0)
    CrossModalStage(dataclasses.replace(VISUAL, weights=unmatched)).check_batch(3, devices=1)


def test_passes_of_the_teacher_must_divide_batches_with_pixels():
    stage = CrossModalStage(dataclasses.replace(CONFIG, teacher_batch=4, match_group=0))
    with pytest.raises(ValueError, match=r"6 clips .* found 4; .*--config\.stage\.teacher_batch"):
        stage.check_batch(6, devices=1)
    stage.of_media("audio").check_batch(6, devices=1)


def test_retrieval_is_what_is_evaluated(config):
    evaluator = CrossModalStage(config).evaluators()["eval"]
    assert evaluator.fields == ("video", "captions")
    assert evaluator.options.rerank == 0
    assert evaluator.tokenizer.max_length == 6
    with pytest.raises(ValueError, match=r"found none; set --config\.data\.vocabulary"):
        CrossModalStage(CONFIG).evaluators()
    longer = dataclasses.replace(config, retrieval=RetrievalOptions(max_text_length=9))
    message = r"at most 8 .*--config\.stage\.retrieval\.max_text_length=8"
    with pytest.raises(ValueError, match=message):
        CrossModalStage(longer).evaluators()


def test_a_recipe_may_want_a_model_to_start_from():
    stage = CrossModalStage(dataclasses.replace(VISUAL, starts_from="a released model"))
    with pytest.raises(ValueError, match="starts from a released model"):
        stage.check_weights()


def save(path, architecture, config, scale):
    variables = noise_like(
        models.abstract_variables(models.ARCHITECTURES[architecture].module_cls(config)), 5, scale
    )
    preprocessing = Preprocessing(VideoPreprocessing(image_size=8, num_frames=4))
    saved_model.save(path, architecture, config, preprocessing, variables)
    return variables["params"]


def test_towers_start_from_models_of_their_own(tmp_path):
    """A stage-1 student of more frames, and a BERT without cross attention."""
    longer = dataclasses.replace(ENCODER, num_frames=4)
    student = models.DistillStudentConfig(longer, (1,), 5, 0, decoder="mlp")
    plain = dataclasses.replace(BERT, fusion_layer=BERT.depth, cross_width=None, mlm_head=False)
    vision = save(tmp_path / "vision", "distill_student", student, 0.3)["encoder"]
    text = save(tmp_path / "text", "bert", plain, 0.3)
    config = dataclasses.replace(
        VISUAL, initial_vision=str(tmp_path / "vision"), initial_text=str(tmp_path / "text")
    )
    stage = CrossModalStage(config)
    stage.check_weights()
    start = noise(stage.init, 1)
    params = stage.load_initial(start)["params"]
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, start["params"])
    encoder, before = params["vision"]["encoder"], start["params"]["vision"]
    np.testing.assert_array_equal(encoder["cls_token"], vision["cls_token"])
    assert vision["pos_embed"].shape == (1, 17, 32)
    # Halves of the clips' length: a step of two is the mean of both.
    table = vision["pos_embed"][:, 1:].reshape(1, 2, 2, 4, 32).mean(2).reshape(1, 8, 32)
    np.testing.assert_allclose(encoder["pos_embed"][:, 1:], table, atol=1e-6)
    np.testing.assert_array_equal(encoder["img_pos_embed"], before["encoder"]["img_pos_embed"])
    np.testing.assert_array_equal(
        params["vision"]["clip_decoder"]["norm"]["bias"], before["clip_decoder"]["norm"]["bias"]
    )
    layers = text["text_blocks"]["mlp"]["fc1"]["kernel"]
    for name, expected in {"text_blocks": layers[:2], "fusion_blocks": layers[2:]}.items():
        np.testing.assert_array_equal(params["text"][name]["mlp"]["fc1"]["kernel"], expected)
    jax.tree.map(
        np.testing.assert_array_equal,
        params["text"]["fusion_blocks"]["cross_attn"],
        start["params"]["text"]["fusion_blocks"]["cross_attn"],
    )


def test_a_model_with_sound_starts_from_one_without_and_a_beats(tmp_path):
    audiovisual = STAGE2["audiovisual"]
    silent = dataclasses.replace(audiovisual, audio=None, match_heads=("video",))
    whole = save(tmp_path / "model", "stage2", silent, 0.3)
    audio = save(tmp_path / "audio", "beats", BEATS, 0.3)
    config = dataclasses.replace(
        CONFIG, initial=str(tmp_path / "model"), initial_audio=str(tmp_path / "audio")
    )
    stage = CrossModalStage(config)
    stage.check_weights()
    start = noise(stage.init, 1)
    params = stage.load_initial(start)["params"]
    for name in ("vision", "text", "video_match_head", "temperature"):
        jax.tree.map(np.testing.assert_array_equal, params[name], whole[name])
    jax.tree.map(np.testing.assert_array_equal, params["audio"], audio)
    name = "audio_match_head"
    jax.tree.map(np.testing.assert_array_equal, params[name], start["params"][name])


@pytest.mark.parametrize("tubelet_size", [1, 2])
def test_a_model_with_sound_starts_from_itself(tmp_path, tubelet_size):
    small = STAGE2["audiovisual"]
    encoder = dataclasses.replace(small.vision.encoder, tubelet_size=tubelet_size)
    model = dataclasses.replace(small, vision=dataclasses.replace(small.vision, encoder=encoder))
    whole = save(tmp_path / "model", "stage2", model, 0.3)
    stage = CrossModalStage(
        dataclasses.replace(CONFIG, model=model, initial=str(tmp_path / "model"))
    )
    stage.check_weights()
    jax.tree.map(
        np.testing.assert_array_equal, stage.load_initial(noise(stage.init, 1))["params"], whole
    )


def test_the_clips_of_a_model_with_sound_may_change_and_its_sounds_not(tmp_path):
    small = STAGE2["audiovisual"]
    whole = save(tmp_path / "model", "stage2", small, 0.3)
    by_tubes = dataclasses.replace(small.vision.encoder, tubelet_size=2, num_frames=4)
    model = dataclasses.replace(small, vision=dataclasses.replace(small.vision, encoder=by_tubes))
    stage = CrossModalStage(
        dataclasses.replace(CONFIG, model=model, initial=str(tmp_path / "model"))
    )
    params = stage.load_initial(noise(stage.init, 1))["params"]
    kernel = whole["vision"]["encoder"]["patch_embed"]["kernel"]
    found = params["vision"]["encoder"]["patch_embed"]["kernel"]
    np.testing.assert_allclose(found, np.repeat(kernel / 2, 2, axis=0), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, params["audio"], whole["audio"])


def test_a_text_tower_of_another_vocabulary_is_refused(tmp_path):
    save(tmp_path / "text", "bert", dataclasses.replace(BERT, vocab_size=21), 0.1)
    stage = CrossModalStage(dataclasses.replace(VISUAL, initial_text=str(tmp_path / "text")))
    with pytest.raises(ValueError, match=r"vocab_size: expected 20, found 21"):
        stage.check_weights()


def test_a_saved_model_has_its_vocabulary_and_preprocessing(tmp_path):
    config = dataclasses.replace(CONFIG, vocabulary=write_words(tmp_path))
    stage = CrossModalStage(config)
    stage.save(noise(stage.init, 0), tmp_path / "model")
    saved = saved_model.load(tmp_path / "model")
    assert isinstance(saved.module, Stage2)
    assert saved.preprocessing.text.max_length == 6
    assert (saved.preprocessing.audio.num_mels, saved.preprocessing.audio.num_frames) == (8, 21)
    assert saved.tokenizer_files["vocab.txt"].read_text().split() == list(WORDS)


def test_narrow_towers_may_start_wider():
    stage = CrossModalStage(dataclasses.replace(CONFIG, fan_in=("vision", "text")))
    fresh = noise(stage.init, 0)
    started = stage.load_initial(fresh)["params"]
    fresh, wider = fresh["params"], 1 / 0.02
    for path, inputs in {
        "vision/encoder/blocks/mlp/fc2/kernel": ENCODER.mlp_dim,
        "text/fusion_blocks/cross_attn/k/kernel": stage.config.model.media_width,
        "text/text_blocks/attn/proj/kernel": BERT.width,
        "text/mlm_head/dense/kernel": BERT.width,
    }.items():
        old, new = (flat(params)[path] for params in (fresh, started))
        np.testing.assert_allclose(new, old * inputs**-0.5 * wider, rtol=1e-6)
    same = ("vision/encoder/patch_embed/kernel", "audio/blocks/mlp/fc1/kernel", "text_proj/kernel")
    for path in same:
        np.testing.assert_array_equal(flat(started)[path], flat(fresh)[path])


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def test_flops_are_those_of_what_the_losses_read(config):
    weights = LossWeights(vtc=0.0, vtm=0.0, mlm=0.0, atc=1.0)
    changed = dataclasses.replace(config, weights=weights, captions=LossCaptions())
    stage = CrossModalStage(changed, "audio")
    text = dataclasses.replace(BERT, depth=BERT.fusion_layer, cross_width=None, mlm_head=False)
    ids = jax.ShapeDtypeStruct((1, config.max_text_length), jnp.int32)
    towers = sum(
        [*models.build(BEATS).flops().values(), *models.build(text).flops(ids, ids).values()]
    )
    size = config.model.embed_dim
    expected = towers + 2 * (BEATS.width + BERT.width) * size
    # Beside them the similarities of two rows, perhaps once for each direction.
    assert 3 * expected < sum(stage.flops().values()) <= 3 * (expected + 2 * 2 * 2 * size)
    assert CrossModalStage(CONFIG).flops() == {}
