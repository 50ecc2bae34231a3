"""Training of the CLIP family: what is hidden, what is trained, where it starts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from flax import traverse_util

from internvideo_jax import models, saved_model
from internvideo_jax.models.video_classifier import VideoClassifierConfig
from internvideo_jax.nn.lora import LoRAConfig
from internvideo_jax.objectives.contrastive import contrastive_loss
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.optimizer import map_paths
from internvideo_jax.training.stages.contrastive import ContrastiveStage
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig
from internvideo_jax.training.state import merge, split_trained
from internvideo_jax.training.word_dropping import without_words
from tests.small_models import (
    ENCODER,
    INTERNVIDEO2_CLIP,
    MERGES,
    STAGE2,
    VICLIP,
    noise,
    noise_like,
    sentence_pieces,
    write_merges,
)

LLAMA = INTERNVIDEO2_CLIP["llama"]
LORA = dataclasses.replace(
    LLAMA,
    text=dataclasses.replace(
        LLAMA.text, lm=dataclasses.replace(LLAMA.text.lm, lora=LoRAConfig(2, 4.0))
    ),
)
CONFIG = ContrastiveConfig(VICLIP, mask=MaskConfig("random", 0.5), word_drop=0.5, text="trained")


def make_batch(stage, rows=4):
    rng = np.random.default_rng(0)
    shapes = stage.example_batch(rows)
    ids = np.zeros(shapes["text"].shape, np.int32)
    ids[:, :6] = rng.integers(1, 28, (rows, 6))
    ids[:, 6] = 29
    video = rng.integers(0, 256, shapes[stage.kind].shape, np.uint8)
    return {stage.kind: video, "text": ids, "clip_id": np.arange(rows, dtype=np.int32)}


def test_batches_are_of_clips_or_images_with_a_caption():
    stage = ContrastiveStage(dataclasses.replace(CONFIG, caption="long"))
    assert stage.media == ("video", "image")
    assert list(stage.example_batch(2)) == ["video", "text/long", "clip_id"]
    assert stage.of_media("image").example_batch(2)["image"].shape == (2, 1, 8, 8, 3)
    longer = stage.of_media("video", num_frames=4, image_size=16).example_batch(2)
    assert longer["video"].shape == (2, 4, 16, 16, 3)
    with pytest.raises(ValueError, match="media of video, image, .* found 'audio'"):
        stage.of_media("audio")


def test_the_loss_compares_what_is_left_of_clips_and_texts():
    stage = ContrastiveStage(CONFIG)
    params, batch = noise(stage.init, 0)["params"], make_batch(stage)
    targets = stage.targets({}, batch, jax.random.key(1))
    assert targets["kept"].shape == (4, 1 + 4)
    assert 0 < targets["dropped"].sum() < targets["dropped"].size

    def whole(params, batch, targets):
        return stage.loss(params, {}, batch, targets, jax.random.key(2))[0]

    def by_hand(params, kept, ids):
        def call(method, *inputs):
            return stage.module.apply({"params": params}, *inputs, method=method)

        video = (batch["video"] / 255 - np.float32((0.485, 0.456, 0.406))) / np.float32(
            (0.229, 0.224, 0.225)
        )
        clips, texts = call("encode_video", video, kept), call("encode_text", ids)
        temperature = call("bounded_temperature")
        return contrastive_loss(
            clips.embedding, texts.embedding, temperature, jnp.asarray(batch["clip_id"])
        )

    loss = jax.jit(whole)(params, batch, targets)
    ids = without_words(batch["text"], targets["dropped"])
    hand = jax.jit(by_hand)
    np.testing.assert_allclose(loss, hand(params, targets["kept"], ids), rtol=1e-5)
    # Hidden patches and words are both seen by the loss.
    others = stage.targets({}, batch, jax.random.key(3))
    assert abs(loss - hand(params, others["kept"], ids)) > 1e-4
    assert abs(loss - hand(params, targets["kept"], batch["text"])) > 1e-4
    shown = dataclasses.replace(CONFIG, mask=MaskConfig("random", 0), word_drop=0)
    assert ContrastiveStage(shown).targets({}, batch, jax.random.key(1)) == {}


def test_what_is_hidden_differs_from_step_to_step():
    stage = ContrastiveStage(CONFIG)
    batch = make_batch(stage)
    first, second = (stage.targets({}, batch, jax.random.key(seed)) for seed in range(2))
    assert not np.array_equal(first["kept"], second["kept"])
    assert not np.array_equal(first["dropped"], second["dropped"])


@pytest.mark.parametrize("name", ["llama", "mobileclip", "viclip"])
def test_the_last_blocks_may_be_trained_alone(name):
    model = VICLIP if name == "viclip" else INTERNVIDEO2_CLIP[name]
    last = {"open_blocks": 1, "text": "trained"}
    stage = ContrastiveStage(ContrastiveConfig(model, **last))
    shapes = models.abstract_variables(stage.module)["params"]
    trained = map_paths(lambda path, _: stage.trainable(path), shapes)
    vision, text = trained["vision"], trained["text"].get("lm", trained["text"])
    assert not any(jax.tree.leaves([vision["patch_embed"], vision["cls_token"]]))
    assert not any(found for part, found in vision.items() if part.startswith("pos_embed"))
    for blocks in (vision["blocks"], text["blocks"]):
        assert all(x.tolist() == [False, True] for x in jax.tree.leaves(blocks))
    behind = [vision.get("pooler", True), vision.get("norm", True), text["norm"]]
    assert all(jax.tree.leaves([behind, trained["text"]["projection"], trained["temperature"]]))
    assert not any(jax.tree.leaves(text.get("embed") or text["token_embed"]))
    everything = ContrastiveStage(ContrastiveConfig(model, text="trained"))
    assert all(jax.tree.leaves(map_paths(lambda path, _: everything.trainable(path), shapes)))


def test_released_recipes_train_the_pooler_and_what_aligns_it():
    stage = ContrastiveStage(ContrastiveConfig(INTERNVIDEO2_CLIP["mobileclip"], open_blocks=0))
    shapes = models.abstract_variables(stage.module)["params"]
    trained = map_paths(lambda path, _: np.any(stage.trainable(path)), shapes)
    assert [n for n, x in trained.items() if all(jax.tree.leaves(x))] == [
        "temperature",
        "vision_align",
    ]
    assert [n for n, x in trained["vision"].items() if any(jax.tree.leaves(x))] == ["pooler"]
    assert not any(jax.tree.leaves(trained["text"]))


def test_adapters_learn_while_the_language_model_stays():
    """Gradients reach the adapters, the projection, the pooler and the temperature."""
    stage = ContrastiveStage(ContrastiveConfig(LORA, open_blocks=0, text="adapters"))
    params, batch = noise(stage.init, 0)["params"], make_batch(stage)

    trained, fixed = split_trained(params, stage.trainable)

    def loss(trained):
        return stage.loss(merge(fixed, trained), {}, batch, {}, jax.random.key(0))[0]

    moved = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(trained), sep="/")
    for path, gradient in moved.items():
        # The pooler's softmax sees no shift of all keys.
        assert path.endswith(("k/bias", "norm_k/bias")) or np.abs(gradient).max() > 0, path
    text = {path for path in moved if path.startswith("text/")}
    adapters = {f"text/lm/blocks/attn/{n}/lora_{x}" for n in "qv" for x in "ab"}
    assert text == {*adapters, "text/projection"}
    assert {path.partition("/")[0] for path in moved} == {"text", "vision", "temperature"}


def test_frozen_towers_drop_nothing():
    """Drop path is for towers that are trained as a whole, the adapters' dropout for adapters."""
    dropping = dataclasses.replace(
        LORA,
        vision=dataclasses.replace(LORA.vision, drop_path_rate=0.9),
        text=dataclasses.replace(
            LORA.text, lm=dataclasses.replace(LORA.text.lm, lora=LoRAConfig(2, 4.0, 0.9))
        ),
    )

    def is_random(**options):
        stage = ContrastiveStage(ContrastiveConfig(dropping, **options))
        params, batch = noise(stage.init, 0)["params"], make_batch(stage)
        traced = jax.make_jaxpr(lambda key: stage.loss(params, {}, batch, {}, key)[0])
        return "random_bits" in str(traced(jax.random.key(0)))

    assert not is_random(open_blocks=0, text="frozen")
    assert is_random(open_blocks=0, text="adapters")
    assert is_random(text="frozen")


def test_the_temperature_stays_above_its_least():
    stage = ContrastiveStage(CONFIG)
    for value, kept in {0.001: 0.01, 0.02: 0.02}.items():
        params = {"temperature": jnp.float32(value), "other": jnp.float32(9)}
        assert stage.bounded(params) == {"temperature": np.float32(kept), "other": 9}
    assert stage.bounded({"other": 9}) == {"other": 9}


def save(path, architecture, config, scale=0.3):
    module = models.ARCHITECTURES[architecture].module_cls(config)
    variables = noise_like(models.abstract_variables(module), 5, scale)
    preprocessing = Preprocessing(VideoPreprocessing(image_size=8, num_frames=2))
    saved_model.save(path, architecture, config, preprocessing, variables)
    return variables["params"]


def start(config):
    stage = ContrastiveStage(config)
    stage.check_weights()
    fresh = noise(stage.init, 1)
    return fresh["params"], stage.load_initial(fresh)["params"]


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_model_starts_from_the_towers_of_two_others(tmp_path):
    """The video tower is that of a stage-2 model of other clips, with positions of images."""
    encoder = dataclasses.replace(ENCODER, num_frames=4, image_positions="own")
    stage2 = dataclasses.replace(
        STAGE2["visual"],
        vision=dataclasses.replace(STAGE2["visual"].vision, encoder=encoder),
    )
    vision = save(tmp_path / "stage2", "stage2", stage2)["vision"]["encoder"]
    text = save(tmp_path / "llama", "llama_text", LLAMA.text)
    fresh, found = start(
        ContrastiveConfig(
            LORA,
            open_blocks=0,
            text="adapters",
            initial_vision=str(tmp_path / "stage2"),
            initial_text=str(tmp_path / "llama"),
        )
    )
    assert vision["img_pos_embed"].shape == (1, 5, 32)
    assert found["vision"].keys() == fresh["vision"].keys()
    assert_equal(found["vision"]["pooler"], vision["pooler"])
    table = vision["pos_embed"][:, 1:].reshape(1, 2, 2, 4, 32).mean(2).reshape(1, 8, 32)
    np.testing.assert_allclose(found["vision"]["pos_embed"][:, 1:], table, atol=1e-6)
    assert_equal(found["text"]["projection"], text["projection"])
    queries, own = (x["text"]["lm"]["blocks"]["attn"]["q"] for x in (found, fresh))
    assert_equal(queries["kernel"], text["lm"]["blocks"]["attn"]["q"]["kernel"])
    assert_equal(queries["lora_a"], own["lora_a"])


def test_a_model_starts_from_one_of_its_kind_and_gets_adapters(tmp_path):
    whole = save(tmp_path / "model", "internvideo2_clip", LLAMA)
    initial = {"initial": str(tmp_path / "model"), "open_blocks": 0}
    fresh, found = start(ContrastiveConfig(LORA, **initial))
    assert_equal(found["vision"], whole["vision"])
    values, own = (x["text"]["lm"]["blocks"]["attn"]["v"] for x in (found, fresh))
    assert_equal(values["lora_b"], own["lora_b"])
    assert_equal(values["kernel"], whole["text"]["lm"]["blocks"]["attn"]["v"]["kernel"])
    longer = dataclasses.replace(LLAMA, vision=dataclasses.replace(LLAMA.vision, num_frames=4))
    fresh, found = start(ContrastiveConfig(longer, **initial))
    assert found["vision"]["pos_embed"].shape == (1, 17, 32)
    assert_equal(found["text"], whole["text"])


def test_adapters_of_another_scale_do_not_fit(tmp_path):
    save(tmp_path / "model", "internvideo2_clip", LORA)
    text = dataclasses.replace(
        LORA.text, lm=dataclasses.replace(LORA.text.lm, lora=LoRAConfig(2, 8.0))
    )
    other = dataclasses.replace(LORA, text=text)
    stage = ContrastiveStage(ContrastiveConfig(other, initial=str(tmp_path / "model")))
    with pytest.raises(ValueError, match=r"config\.text\.lm\.lora: expected .*alpha=8\.0"):
        stage.check_weights()
    # Nothing takes the adapters up.
    plain = ContrastiveStage(ContrastiveConfig(LLAMA, initial=str(tmp_path / "model")))
    with pytest.raises(ValueError, match="lora_a: not part of the model"):
        plain.check_weights()


def test_a_classifier_starts_from_the_tower_of_a_clip_model(tmp_path):
    from internvideo_jax.training.stages.classify import ClassifyConfig, ClassifyStage

    whole = save(tmp_path / "model", "internvideo2_clip", LLAMA)
    encoder = dataclasses.replace(LLAMA.vision, image_positions="resized")
    config = ClassifyConfig(
        VideoClassifierConfig(encoder, num_classes=3), initial=str(tmp_path / "model")
    )
    stage = ClassifyStage(config)
    stage.check_weights()
    found = stage.load_initial(noise(stage.init, 1))["params"]["encoder"]
    assert_equal(found["blocks"], whole["vision"]["blocks"])


def test_what_stays_as_it_is_must_come_from_somewhere(tmp_path):
    released = ContrastiveStage(ContrastiveConfig(LLAMA, open_blocks=0))
    with pytest.raises(ValueError, match=r"stage\.initial_vision and stage\.initial_text"):
        released.check_weights()
    with pytest.raises(ValueError, match=r"in stage\.initial_text, or a whole one"):
        ContrastiveStage(ContrastiveConfig(VICLIP)).load_initial({})
    ContrastiveStage(CONFIG).check_weights()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"mask": MaskConfig("attention", 0.5)}, r"mask\.kind: .* found 'attention'"),
        ({"mask": MaskConfig("random", 1.0)}, r"mask\.ratio: .* found 1\.0"),
        ({"word_drop": 1.0}, "word_drop: .* found 1.0"),
        ({"open_blocks": -1}, "open_blocks: expected at least 0, found -1"),
        ({"contrastive_gradient_scale": 0.0}, "contrastive_gradient_scale"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes, found):
    with pytest.raises(ValueError, match=found):
        dataclasses.replace(CONFIG, **changes)


def test_a_vocabulary_must_be_the_models_and_retrieval_is_evaluated(tmp_path):
    merges = str(write_merges(tmp_path))
    size = 514 + len(MERGES)
    fitting = dataclasses.replace(VICLIP, text=dataclasses.replace(VICLIP.text, vocab_size=size))
    stage = ContrastiveStage(ContrastiveConfig(fitting, vocabulary=merges))
    evaluator = stage.evaluators()["eval"]
    assert (evaluator.fields, evaluator.num_candidates) == (("video", "captions"), 0)
    assert stage.preprocessing.text.tokenizer == "clip_bpe"
    with pytest.raises(ValueError, match=f"expected 30 tokens, .* found {size}"):
        ContrastiveStage(ContrastiveConfig(VICLIP, vocabulary=merges))
    pieces = tmp_path / "tokenizer.model"
    pieces.write_bytes(sentence_pieces())
    with pytest.raises(ValueError, match="expected 30 tokens"):
        ContrastiveStage(ContrastiveConfig(LLAMA, vocabulary=str(pieces)))
    assert sentencepiece.SentencePieceProcessor(model_file=str(pieces)).get_piece_size() == 330
    with pytest.raises(ValueError, match=r"found none; set --config\.data\.vocabulary"):
        ContrastiveStage(CONFIG).evaluators()


def test_flops_of_what_stays_count_once():
    def count(**options):
        return sum(ContrastiveStage(ContrastiveConfig(LLAMA, **options)).flops().values())

    text = ContrastiveStage(ContrastiveConfig(LLAMA)).module.text_tower()[0]
    towers = {
        "vision": sum(models.build(LLAMA.vision).flops().values()),
        "text": sum(text.flops().values()),
    }
    frozen, everything = count(open_blocks=0), count(text="trained")
    assert sum(towers.values()) < frozen < 1.5 * sum(towers.values())
    assert 2.5 * sum(towers.values()) < everything < 3.5 * sum(towers.values())
