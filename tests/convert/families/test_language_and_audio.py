"""The families of BERT, BEATs and LLaMA: all that their files may look like."""

import dataclasses
import json

import numpy as np
import pytest

from internvideo_jax.convert.engine.plan import CheckpointMisfit, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.state_dict import to_state_dict, to_tree
from internvideo_jax.convert.engine.upstream import infer, infer_config, to_upstream
from internvideo_jax.models.beats import beats_iter3_plus, deep_norm_scale
from internvideo_jax.models.bert import bert_large_fusion
from internvideo_jax.models.llama_text import internvl_c_text
from internvideo_jax.nn.lora import LoRAConfig
from tests.small_models import BEATS, BERT, DECODER_LM, LLAMA_TEXT, fold_lora

BEATS = dataclasses.replace(BEATS, residual_scale=deep_norm_scale(2))
LLAMA = dataclasses.replace(
    LLAMA_TEXT, lm=dataclasses.replace(LLAMA_TEXT.lm, qkv_bias=False, proj_bias=False)
)
LORA = LoRAConfig(rank=3, alpha=5.0, dropout_rate=0.1, targets=("q", "proj", "down"))
CONFIGS = {
    "bert": BERT,
    "bert, text alone": dataclasses.replace(
        BERT, fusion_layer=3, cross_width=None, mlm_head=False, activation="relu"
    ),
    "beats": BEATS,
    "beats, other options": dataclasses.replace(
        BEATS,
        patch_bias=True,
        patch_width=16,
        num_buckets=0,
        gated_bias=False,
        norm_first=True,
        residual_scale=1.0,
    ),
    "llama": LLAMA,
    "llama with biases": LLAMA_TEXT,
    "llama alone": dataclasses.replace(DECODER_LM, proj_bias=False),
    "llama alone, tied": dataclasses.replace(DECODER_LM, head="tied"),
    "llama with adapters": dataclasses.replace(LLAMA, lm=dataclasses.replace(LLAMA.lm, lora=LORA)),
}


def _read(shapes, **options):
    return infer_config(recognize(shapes), **options)


def _tree(state, **options):
    """Parameters of a state dict, converted as what it is taken for."""
    found = recognize({key: x.shape for key, x in state.items()})
    made = plan(found, infer_config(found, **options))
    return to_tree(state, made), made


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_read_and_written_to_the_bit(name, make_state):
    config = CONFIGS[name]
    state = make_state(config)
    stored = json.loads(json.dumps(to_upstream(config)))
    if name == "beats, other options":
        # Without the bias, no tensor shows its buckets.
        assert stored.setdefault("num_buckets", 8) == 8
    variables, made = _tree(state, stored=stored)
    assert made.config == config
    written = to_state_dict(variables, made)
    assert written.keys() == state.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, state[key])


@pytest.mark.parametrize("config", [bert_large_fusion(), beats_iter3_plus(), internvl_c_text()])
def test_released_models_are_read_from_their_tensors_alone(config, shapes_of):
    assert _read(shapes_of(config)) == config


@pytest.mark.parametrize("config", [BERT, LLAMA])
def test_numbers_of_heads_that_nothing_tells_are_asked_for(config, shapes_of):
    with pytest.raises(ValueError, match="pass --option=num_attention_heads=N"):
        _read(shapes_of(config))


def test_berts_repeat_their_words_and_lose_a_prefix(make_state):
    state = make_state(BERT)
    stored = to_upstream(BERT)
    expected, _ = _tree(state, stored=stored)
    words = state["bert.embeddings.word_embeddings.weight"]
    repeated = state | {
        "cls.predictions.decoder.weight": words,
        "cls.predictions.decoder.bias": state["cls.predictions.bias"],
        "bert.embeddings.position_ids": np.arange(8)[None],
    }
    _, made = _tree(repeated, stored=stored)
    assert sorted(made.tied) == ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"]
    bare = {
        "module.text_encoder." + key.removeprefix("bert."): x
        for key, x in state.items()
        if not key.startswith("cls.")
    }
    variables, made = _tree(bare, stored=stored)
    assert not made.config.mlm_head
    np.testing.assert_array_equal(
        variables["params"]["fusion_blocks"]["cross_attn"]["k"]["kernel"],
        expected["params"]["fusion_blocks"]["cross_attn"]["k"]["kernel"],
    )


def test_a_tower_of_a_stage_2_file_is_asked_for(shapes_of):
    shapes = shapes_of(BERT, "text_encoder.") | shapes_of(BEATS, "audio_encoder.")
    with pytest.raises(ValueError, match="--architecture=bert or beats"):
        recognize(shapes)
    shapes |= {"vision_encoder.cls_token": (1, 1, 8), "temp": (), "itm_head.weight": (2, 16)}
    for architecture, config in (("bert", BERT), ("beats", BEATS)):
        found = recognize(shapes, architecture=architecture)
        made = plan(found, infer_config(found, stored=to_upstream(config)))
        assert made.config == config
        assert "other parts of stage 2" in made.ignored.values()


def test_positional_convolutions_are_plain_weighted_or_parametrised(make_state):
    state = make_state(BEATS)
    stored = to_upstream(BEATS)
    expected, _ = _tree(state, stored=stored)
    conv = "encoder.pos_conv.0."
    length, direction = state.pop(conv + "weight_g"), state.pop(conv + "weight_v")
    spelled = {
        f"{conv}parametrizations.weight.original{i}": x for i, x in enumerate((length, direction))
    }
    bias = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    shared = {bias.format(1): state[bias.format(0)], "predictor.weight": np.zeros((3, 16))}
    variables, made = _tree(state | spelled | shared, stored=stored)
    np.testing.assert_array_equal(
        variables["params"]["pos_conv"]["v"], expected["params"]["pos_conv"]["v"]
    )
    assert list(made.tied) == [bias.format(1)]
    weight = length * direction / np.sqrt((direction**2).sum((0, 1)))
    variables, _ = _tree(state | {conv + "weight": weight}, stored=stored)
    v, g = (variables["params"]["pos_conv"][name] for name in "vg")
    np.testing.assert_allclose(g, np.abs(length[0, 0]), rtol=1e-5)
    np.testing.assert_allclose(v, weight.transpose(2, 1, 0), rtol=1e-6)


def test_adapters_are_folded_or_kept(make_state):
    config = CONFIGS["llama with adapters"]
    state = make_state(config, "text_encoder.")
    files = {}
    for key, x in state.items():
        name = key.replace(".lora_A.weight", ".lora_A.default.weight")
        name = name.replace(".lora_B.weight", ".lora_B.default.weight")
        is_adapted = key.replace(".weight", ".lora_A.weight") in state
        files[name.replace(".weight", ".base_layer.weight") if is_adapted else name] = x
    stored = to_upstream(config)
    kept, made = _tree(files, stored=stored)
    assert made.config == config
    folded, made = _tree(files, stored=stored | {"keep_lora": False})
    assert made.config.lm.lora.targets == ()
    ours = fold_lora(kept["params"]["lm"]["blocks"], LORA)
    theirs = folded["params"]["lm"]["blocks"]
    for part, name in (("attn", "q"), ("attn", "proj"), ("mlp", "down"), ("mlp", "up")):
        kernels = ours[part][name]["kernel"], theirs[part][name]["kernel"]
        np.testing.assert_allclose(*kernels, rtol=1e-5, atol=1e-5)


def test_what_files_do_not_say_of_a_model_is_said(shapes_of):
    config = CONFIGS["llama with adapters"]
    stored = {n: v for n, v in to_upstream(config).items() if n != "lora_alpha"}
    rank = config.lm.lora.rank
    notes = infer(recognize(shapes_of(config)), stored=stored).notes
    assert notes == (f"not in the file, assumed as usual: lora_alpha={2 * rank}",)
    stored = {n: v for n, v in to_upstream(BEATS).items() if n != "max_distance"}
    assert "max_distance=800" in infer(recognize(shapes_of(BEATS)), stored=stored).notes[0]
    for complete in (BEATS, BERT, config):
        assert infer(recognize(shapes_of(complete)), stored=to_upstream(complete)).notes == ()


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (BEATS, {"max_distance": 0}),
        (BEATS, {"max_distance": 1}),
        (BERT, {"num_attention_heads": 5}),
        (BERT, {"num_attention_heads": 4.0}),
        (LLAMA, {"num_attention_heads": 10**9}),
        (LLAMA, {"lora_alpha": "16", "lora_r": 2}),
        (LLAMA, {"lora_r": {}}),
        (LLAMA, {"lora_r": ""}),
        (LLAMA, {"rms_norm_eps": float("nan")}),
        (LLAMA, {"llama": 3}),
    ],
)
def test_recorded_numbers_that_no_tensor_shows_have_ranges(config, option, shapes_of):
    with pytest.raises(
        ValueError, match=rf"{next(iter(option))}: expected|\b{next(iter(option))}\b"
    ):
        _read(shapes_of(config), stored=to_upstream(config) | option)


def test_what_is_not_supported_is_refused_by_name(shapes_of, make_state):
    for config, option in (
        (BERT, {"position_embedding_type": "relative_key"}),
        (BEATS, {"activation_fn": "glu"}),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (LLAMA, {"lora_targets": ["lm_head"], "lora_r": 3}),
        (LLAMA, {"mlp_bias": True}),
        (LLAMA, {"unheard_of": 1}),
    ):
        named = "lm_head" if "lora_r" in option else next(iter(option))
        with pytest.raises(ValueError, match=named):
            _read(shapes_of(config), given=to_upstream(config) | option)
    shapes = shapes_of(LLAMA)
    del shapes["transformer.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(ValueError, match="expected a tensor .*q_proj"):
        _read(shapes, given=to_upstream(LLAMA))
    state = make_state(BERT) | {"bert.more": np.zeros(1)}
    del state["bert.encoder.layer.2.crossattention.self.query.bias"]
    with pytest.raises(CheckpointMisfit, match="1 keys missing, 1 extra"):
        _tree(state, stored=to_upstream(BERT))
