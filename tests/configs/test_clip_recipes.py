"""Recipes of the CLIP family: every one is a run, and shards over a pod."""

import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh

from internvideo_jax.configs.clip import finetune, pretrain
from internvideo_jax.convert.engine import registry
from internvideo_jax.launch.common.run_config import parse_run
from internvideo_jax.parallel.mesh import AXES
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.training.batches import check_batch_fits
from internvideo_jax.training.state import abstract_state
from tests.small_models import clip_viclip, save_viclip

# data x fsdp of v5e:16x16.
MESH = AbstractMesh((16, 16, 1, 1), AXES)


@pytest.mark.parametrize(
    ("name", "rows", "epochs", "warmup", "lr", "ratio"),
    [
        ("1b", 4096, 3, 0.6, 4e-4, 0.0),
        ("6b", 2048, 1, 0.2, 4e-4, 0.0),
        ("1b_lora", 4096, 3, 0.6, 4e-4, 0.0),
        ("6b_lora", 2048, 1, 0.2, 4e-4, 0.0),
        ("s14", 4096, 3, 0.6, 4e-4, 0.0),
        ("b14", 4096, 3, 0.6, 4e-4, 0.0),
        ("l14", 4096, 3, 0.6, 4e-4, 0.0),
        ("viclip_b16", 4096, 10, 0.5, 2e-4, 0.9),
        ("viclip_l14", 32_768, 10, 0.5, 4e-4, 0.9),
        ("viclip_l14_unmasked", 2048, 0.5, 0.1, 4e-6, 0.0),
        ("efficient", 4096, 10, 0.5, 2e-4, 0.9),
    ],
)
def test_recipes_are_upstreams_and_fit_a_pod(name, rows, epochs, warmup, lr, ratio):
    run = parse_run(pretrain.get_config(name))
    train, stage = run.train, run.stage.config
    assert (train.batch_size, train.epochs, train.warmup_epochs) == (rows, epochs, warmup)
    o = train.optimizer
    assert (o.lr, o.min_lr, o.schedule) == (lr, 0.01 * lr, "floored_cosine")
    assert (o.betas, o.eps, o.weight_decay, o.max_grad_norm) == ((0.9, 0.98), 1e-8, 0.2, None)
    assert (stage.mask.kind, stage.mask.ratio) == ("random", ratio)
    assert (stage.model.vision.num_frames, stage.model.vision.image_size) == (8, 224)
    assert stage.model.vision.dtype == "bfloat16"
    kinds = run.kinds()
    assert tuple(kinds) == ("video", "image")
    for kind in kinds.values():
        check_batch_fits(train, MESH, kind)


def test_every_recipe_is_tested():
    (mark,) = test_recipes_are_upstreams_and_fit_a_pod.pytestmark
    assert {values[0] for values in mark.args[1]} == set(pretrain.RECIPES)


@pytest.mark.parametrize(
    ("name", "trained", "count"),
    [
        # As in upstream's table of parameters, and all of ViCLIP's.
        ("1b", 7_042_177, 7_704_737_537),
        ("6b", 33_207_169, 12_625_764_097),
        ("s14", 1_136_769, 86_867_201),
        ("b14", 2_762_241, 153_262_337),
        ("l14", 4_337_409, 372_752_641),
        ("efficient", 149_603_841, 149_603_841),
    ],
)
def test_what_is_trained_is_what_upstream_trains(name, trained, count):
    run = parse_run(pretrain.get_config(name))
    state, fixed = abstract_state(run.stage, run.train, MESH, DEFAULT_RULES)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, fixed)]
    assert (sizes[0], sum(sizes)) == (trained, count)
    if fixed:
        kernel = fixed["vision"]["blocks"]["mlp"]["fc1"]["kernel"]
        assert kernel.dtype == "bfloat16"
        assert kernel.sharding.shard_shape(kernel.shape)[1] == kernel.shape[1] // 16


def test_adapters_are_trained_beside_a_frozen_language_model():
    run = parse_run(pretrain.get_config("1b_lora"))
    state, fixed = abstract_state(run.stage, run.train, MESH, DEFAULT_RULES)
    assert set(state.params["text"]["lm"]["blocks"]["attn"]) == {"q", "v"}
    query = state.params["text"]["lm"]["blocks"]["attn"]["q"]
    assert {name: x.shape for name, x in query.items()} == {
        "lora_a": (32, 4096, 16),
        "lora_b": (32, 16, 32, 128),
    }
    assert set(state.params["text"]) == {"lm", "projection"}
    assert fixed["text"]["lm"]["embed"]["embedding"].dtype == "bfloat16"


@pytest.mark.parametrize("name", finetune.RECIPES)
def test_fine_tuning_starts_from_a_release(name):
    config = finetune.get_config(name)
    release = registry.find(config.stage.starts_from)
    model = parse_run(config).stage.config.model
    assert release.mismatches(model) == []
    is_llama = "lm" in config.stage.model.text
    assert config.stage.text == ("frozen" if is_llama else "trained")
    is_viclip = name.startswith("viclip")
    tokenizer = "sentencepiece" if is_llama else "clip_bpe" if is_viclip else "open_clip_bpe"
    assert config.data.tokenizer == tokenizer


def test_the_tokenizer_is_that_of_the_model_to_start_from(tmp_path):
    model = save_viclip(tmp_path)
    config = finetune.get_config("viclip_b16")
    config.stage.initial = str(model)
    for part, own in dataclasses.asdict(clip_viclip()).items():
        if isinstance(own, dict):
            config.stage.model[part].update({k: v for k, v in own.items() if v is not None})
    config.data.num_frames, config.data.image_size = 4, 32
    run = parse_run(config)
    assert run.data.vocabulary == str(model / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz")
    assert run.stage.preprocessing.text.tokenizer == run.data.tokenizer == "clip_bpe"
    config.data.tokenizer = "open_clip_bpe"
    with pytest.raises(ValueError, match=r"data\.tokenizer: expected 'clip_bpe' as in config\.st"):
        parse_run(config)


def test_unknown_recipes_are_refused_with_all_names():
    for module in (pretrain, finetune):
        with pytest.raises(ValueError, match="found '2b'.*recipes: ") as error:
            module.get_config("2b")
        assert all(name in str(error.value) for name in module.RECIPES)
