"""Stage-2 recipes: every one is a run, and shards over a pod."""

import jax
import pytest
from jax.sharding import AbstractMesh

from internvideo_jax.configs.demo import stage2 as demo_stage2
from internvideo_jax.configs.stage2 import finetune, pretrain
from internvideo_jax.convert.engine import registry
from internvideo_jax.launch.common.run_config import parse_run
from internvideo_jax.parallel.mesh import AXES
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.training.batches import check_batch_fits
from internvideo_jax.training.state import abstract_frozen, abstract_state

# data x fsdp of v5e:16x16.
MESH = AbstractMesh((16, 16, 1, 1), AXES)
RUNS = {name: parse_run(pretrain.get_config(name)) for name in pretrain.RECIPES}


def test_each_recipe_has_the_losses_of_its_media():
    media = {name: tuple(run.kinds()) for name, run in RUNS.items()}
    assert media == {
        "1b": ("video", "image"),
        "1b_teacher": ("video", "image"),
        "6b": ("video", "image"),
        "6b_teacher": ("video", "image"),
        "6b_audio": ("video", "image", "audio_video"),
        "demo": ("video", "audio", "audio_video"),
    }
    losses = {name: set(run.stage.config.weights.terms) for name, run in RUNS.items()}
    assert losses["1b"] == losses["6b"] == {"vtc", "vtm", "mlm"}
    alignments = {name: set(run.stage.config.weights.alignment) for name, run in RUNS.items()}
    followers = {name for name, terms in alignments.items() if terms}
    assert followers == {"1b_teacher", "6b_teacher"}
    assert losses["6b_audio"] == {"vtc", "vtm", "mlm", "avtc", "avtm", "avmlm"}
    assert losses["demo"] == {"vtc", "vtm", "mlm", "avtc", "atc"}


@pytest.mark.parametrize(
    ("name", "batch_size", "epochs", "length"),
    [("1b", 4096, 10, 32), ("6b", 16384, 5, 40), ("6b_audio", 16384, 5, 40)],
)
def test_the_released_recipes_are_upstreams(name, batch_size, epochs, length):
    run = RUNS[name]
    train, stage = run.train, run.stage.config
    assert (train.batch_size, train.epochs, train.warmup_epochs) == (batch_size, epochs, 1)
    assert (stage.match_group, stage.contrastive_gradient_scale) == (64, 64 / batch_size)
    assert (stage.max_text_length, stage.video_mask.ratio, stage.image_mask.ratio) == (
        *(length, 0.8, 0.5),
    )
    o = train.optimizer
    assert (o.lr, o.min_lr, o.betas, o.eps) == (5e-5, 0.01 * 5e-5, (0.9, 0.98), 1e-8)
    assert (o.weight_decay, o.max_grad_norm, o.schedule) == (0.05, 3.0, "floored_cosine")
    for kind in run.kinds().values():
        check_batch_fits(train, MESH, kind)
    encoder = stage.model.vision.encoder
    assert (encoder.num_frames, encoder.image_size) == (4, 224)


def test_the_teacher_is_stage_1s_and_no_part_of_the_model():
    stage = RUNS["1b_teacher"].stage
    assert stage.config.weights.alignment == {"clip_middle": 1.0, "clip_final": 1.0}
    frozen = abstract_frozen(stage, MESH, DEFAULT_RULES)
    kernel = frozen["teacher"]["params"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((48, 3200, 12800), "bfloat16")
    assert set(abstract_state(stage, RUNS["1b"].train, MESH, DEFAULT_RULES)[0].params) == set(
        abstract_state(RUNS["1b"].stage, RUNS["1b"].train, MESH, DEFAULT_RULES)[0].params
    )


@pytest.mark.parametrize("name", ["1b", "6b_audio"])
def test_models_are_sharded_over_16x16_without_being_made(name):
    run = RUNS[name]
    state, fixed = abstract_state(run.stage, run.train, MESH, DEFAULT_RULES)
    kernel = state.params["vision"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == kernel.shape[1] // 16
    count = sum(leaf.size for leaf in jax.tree.leaves((state.params, fixed)))
    assert count == {"1b": 1_410_146_493, "6b_audio": 6_453_900_079}[name]
    # Upstream's BEATs stays as it is, and what joins it is trained.
    assert set(fixed) == ({"audio"} if name == "6b_audio" else set())
    assert {"audio_proj", "audio_tokens"} <= set(state.params) or name == "1b"


def test_data_that_do_not_fit_the_stage_are_named():
    config = pretrain.get_config("6b_audio")
    config.data.max_text_length = 32
    config.data.audio.num_mels = 128
    with pytest.raises(ValueError, match=r"audio\.num_mels: expected 64.*; .*length: expected 40"):
        parse_run(config)


@pytest.mark.parametrize("name", finetune.RECIPES)
def test_fine_tuning_is_for_retrieval_on_any_number_of_chips(name, tmp_path):
    config = finetune.get_config(name)
    assert registry.find(config.stage.starts_from).architecture == "stage2"
    config.stage.vocabulary = write_words(tmp_path, 30_522)
    config.stage.open_blocks = 2
    config.data.annotations = "clips.jsonl"
    config.data.validation_share = 0.1
    run = parse_run(config)
    assert set(run.stage.config.weights.terms) == {"vtc", "vtm"}
    assert (run.train.batch_size, run.stage.config.match_group) == (32, 8)
    assert run.train.optimizer.lr == 5e-6
    assert (run.eval_data.part, run.eval_data.augmentation) == ("validation", "none")
    assert (run.eval_data.resize, run.train.eval_epochs) == ("bicubic_square", 1.0)
    assert run.stage.evaluators().keys() == {"eval"}


@pytest.mark.parametrize(("name", "size"), [("demo", "full"), ("demo,fast", "fast")])
def test_the_demos_model_is_fine_tuned_on_clips_without_sound(name, size, tmp_path):
    config = finetune.get_config(name)
    assert config.stage.model == demo_stage2.get_config(size).stage.model
    config.data.annotations = "clips.jsonl"
    config.data.vocabulary = write_words(tmp_path, 39)
    run = parse_run(config)
    assert set(run.stage.config.weights.terms) == {"vtc", "vtm"}
    assert list(run.kinds()) == ["video"]
    assert (run.train.batch_size, run.stage.config.match_group) == (32, 8)
    assert (run.train.steps, run.train.epochs) == (None, 5)
    with pytest.raises(ValueError, match="found 'slow'.*recipes: full, fast"):
        finetune.get_config("demo,slow")
    with pytest.raises(ValueError, match="found '2b'.*recipes: 1b, 6b, demo"):
        finetune.get_config("2b")


def write_words(folder, count):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path = folder / "vocab.txt"
    path.write_text("\n".join([*special, *map(str, range(count - len(special)))]))
    return str(path)


def test_unknown_recipes_are_refused_with_all_names():
    with pytest.raises(ValueError, match="found '2b'.*recipes: 1b, 1b_teacher, 6b, .*demo"):
        pretrain.get_config("2b")


def test_members_say_what_their_batches_are(tmp_path):
    config = pretrain.get_config("1b")
    member = {"annotations": "clips.json", "media": "image", "batch_size": 512}
    config.data.mixture = (member, member | {"media": "video", "image_size": 112})
    kinds = parse_run(config).kinds()
    found = {
        name: (kind.rows, next(iter(kind.stage.example_batch(1).values())).shape[1:3])
        for name, kind in kinds.items()
    }
    assert found == {"image": (512, (1, 224)), "video": (512, (4, 112))}
    config.data.mixture = (member | {"media": "audio"},)
    with pytest.raises(ValueError, match="media of video, image"):
        parse_run(config)


def test_a_vocabulary_is_that_of_the_model_to_start_from(tmp_path):
    config = pretrain.get_config("demo")
    (tmp_path / "tokenizer").mkdir()
    write_words(tmp_path / "tokenizer", 39)
    config.stage.initial = str(tmp_path)
    run = parse_run(config)
    assert run.data.vocabulary == str(tmp_path / "tokenizer" / "vocab.txt")
    assert run.stage.vocabulary.size == 39
    config.data.vocabulary = "other.txt"
    config.stage.vocabulary = str(tmp_path / "tokenizer" / "vocab.txt")
    with pytest.raises(ValueError, match="expected one vocabulary"):
        parse_run(config)
