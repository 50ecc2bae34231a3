"""The families of ViCLIP, of its towers and of CLIP's and MobileCLIP's: what files look like."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from internvideo_jax import saved_model
from internvideo_jax.convert.engine.conversion import Request, convert
from internvideo_jax.convert.engine.misfit import CheckpointMisfit
from internvideo_jax.convert.engine.plan import plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.state_dict import to_state_dict, to_tree
from internvideo_jax.convert.engine.upstream import infer, infer_config, to_upstream
from internvideo_jax.data.tokenizers import tokenizer_of
from internvideo_jax.models.clip_text import mobileclip_b_text
from internvideo_jax.models.viclip import viclip_b16, viclip_l14
from tests.small_models import CLIP_TEXT, CLIP_VISION, VICLIP, write_merges

MOBILE = dataclasses.replace(CLIP_TEXT, activation="gelu_erf", other_lengths="resized")
CONFIGS = {
    "viclip": VICLIP,
    "text": CLIP_TEXT,
    "video": CLIP_VISION,
    "video without times": dataclasses.replace(CLIP_VISION, temporal_positions=False),
    "mobileclip": MOBILE,
    "mobileclip, other options": dataclasses.replace(
        MOBILE,
        is_causal=False,
        depth=3,
        heads_by_layer=(2, 4, 4),
        mlp_dims_by_layer=(64, 32, 64),
    ),
}
HEADS = {"vision.heads": 2, "text.transformer_heads": 2}


def _tree(state, **options):
    """Parameters of a state dict, converted as what it is taken for."""
    found = recognize({key: x.shape for key, x in state.items()})
    made = plan(found, infer_config(found, **options))
    return to_tree(state, made), made


def _spelled_as_mobileclip(state):
    """The same tensors as MobileCLIP's file has them."""
    names = {
        "token_embedding.weight": "embedding_layer.weight",
        "positional_embedding": "positional_embedding.pos_embed.pos_embed",
        "text_projection": "projection_layer",
        "transformer.resblocks.": "transformer.",
        "ln_final.": "final_layer_norm.",
        ".ln_1.": ".pre_norm_mha.0.",
        ".ln_2.": ".pre_norm_ffn.0.",
        ".attn.in_proj_": ".pre_norm_mha.1.qkv_proj.",
        ".attn.out_proj.": ".pre_norm_mha.1.out_proj.",
        ".mlp.c_fc.": ".pre_norm_ffn.1.",
        ".mlp.c_proj.": ".pre_norm_ffn.4.",
    }
    spelled = {}
    for key, x in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        spelled[f"text_encoder.{key}"] = x
    return spelled


def _image_clip(make_state):
    """The tensors of a CLIP of images and texts that fits `VICLIP`."""
    state = {}
    for key, x in make_state(VICLIP).items():
        key = key.replace("vision_encoder.", "visual.").replace("text_encoder.", "")
        state[key] = x[:, :, 0] if key == "visual.conv1.weight" else x
    del state["visual.temporal_positional_embedding"], state["temp"]
    return state | {"logit_scale": np.float32(4.6), "attn_mask": np.zeros((8, 8), np.float32)}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_read_and_written_to_the_bit(name, make_state):
    config = CONFIGS[name]
    state = make_state(config)
    if "mobileclip" in name:
        state = _spelled_as_mobileclip(state)
    stored = json.loads(json.dumps(to_upstream(config)))
    variables, made = _tree(state, stored=stored)
    assert made.config == config
    written = to_state_dict(variables, made)
    assert written.keys() == state.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)


@pytest.mark.parametrize("config", [viclip_b16(), viclip_l14(), mobileclip_b_text()])
def test_released_models_are_read_from_their_tensors_alone(config, shapes_of):
    assert infer_config(recognize(shapes_of(config))) == config


def test_what_files_do_not_say_of_a_model_is_said(shapes_of):
    notes = infer(recognize(shapes_of(mobileclip_b_text()))).notes
    assert notes == ("not in the file, assumed as usual: causal_masking=True",)
    assert infer(recognize(shapes_of(VICLIP)), stored=to_upstream(VICLIP)).notes == ()


def test_numbers_of_heads_that_nothing_tells_are_asked_for_all_at_once(shapes_of):
    with pytest.raises(ValueError, match=r"(?s)vision\.\*.*heads=N.*text\.\*.*transformer_heads=N"):
        infer_config(recognize(shapes_of(VICLIP)))


def test_a_tower_of_a_whole_file_is_asked_for(make_state):
    whole = make_state(VICLIP, "module.")
    for state, architecture, config in (
        (whole, "clip_text", CLIP_TEXT),
        (whole, "clip_vision", CLIP_VISION),
        (_image_clip(make_state), "clip_text", CLIP_TEXT),
    ):
        found = recognize({key: x.shape for key, x in state.items()}, architecture=architecture)
        made = plan(found, infer_config(found, given=to_upstream(config)))
        assert made.config == config
        assert len(made.ignored) > 20


def test_mobileclip_leaves_its_image_tower_behind(make_state):
    state = _spelled_as_mobileclip(make_state(MOBILE))
    more = {"image_encoder.model.stem.weight": np.zeros(3), "logit_scale": np.zeros(())}
    _, made = _tree(state | more, stored=to_upstream(MOBILE))
    assert sorted(made.names[key] for key in made.ignored) == sorted(more)


def test_an_image_clip_becomes_the_start_of_a_viclip(make_state):
    state = _image_clip(make_state)
    given = HEADS | {"vision.num_frames": 2}
    variables, made = _tree(state, given=given)
    assert made.config == VICLIP
    params = variables["params"]
    assert not params["vision"]["pos_embed_temporal"].any()
    np.testing.assert_allclose(params["temperature"], 0.01)
    kernel = state["visual.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["vision"]["patch_embed"]["kernel"][0], kernel)
    assert set(made.ignored) == {"logit_scale", "attn_mask"}


def test_models_are_fitted_to_other_clips_and_texts(shapes_of, make_state):
    found = recognize(shapes_of(VICLIP))
    changes = {"num_frames": 4, "image_size": 12, "max_text_length": 5}
    target = found.family.retarget(VICLIP, changes)
    made = plan(found, VICLIP, target=target)
    assert made.changes == {
        "vision_encoder.positional_embedding": "positions resized 1x2x2 -> 1x3x3",
        "vision_encoder.temporal_positional_embedding": "positions of 2 frames interpolated to 4",
        "text_encoder.positional_embedding": "positions of 8 tokens cut to 5",
    }
    state = make_state(VICLIP)
    params = to_tree(state, made)["params"]
    np.testing.assert_array_equal(
        params["text"]["pos_embed"], state["text_encoder.positional_embedding"][:5]
    )
    assert params["vision"]["pos_embed_spatial"].shape == (1, 10, 32)
    assert params["vision"]["pos_embed_temporal"].shape == (1, 4, 32)
    for config in (CLIP_VISION, CLIP_TEXT):
        family = recognize(shapes_of(config)).family
        wrong = {"max_text_length": 5} if config is CLIP_VISION else {"num_frames": 4}
        with pytest.raises(ValueError, match="leave"):
            family.retarget(config, wrong)


@pytest.mark.parametrize(
    ("key", "shape", "reason"),
    [
        ("vision_encoder.positional_embedding", (4, 32), "of a square of patches, found 4 rows"),
        ("vision_encoder.conv1.weight", (32,), "conv1.weight to have 4 or 5 axes"),
        ("text_encoder.text_projection", (), "text_projection"),
        ("text_encoder.positional_embedding", (8,), "positional_embedding"),
    ],
)
def test_shapes_are_looked_at_before_sizes_are_read_from_them(key, shape, reason, shapes_of):
    found = recognize(shapes_of(VICLIP) | {key: shape})
    with pytest.raises(ValueError, match=reason):
        infer_config(found, given=HEADS)


def test_what_is_not_supported_is_refused_by_name(shapes_of):
    for config, option, name in (
        (VICLIP, {"vision.kernel_size": 3}, "kernel_size"),
        (VICLIP, {"unheard_of": 1}, "unheard_of"),
        (MOBILE, {"model_name": "mct"}, "model_name"),
        (MOBILE, {"ffn_multiplier_per_layer": [4.0, "4"]}, "ffn_multiplier_per_layer"),
        (MOBILE, {"n_heads_per_layer": []}, "n_heads_per_layer"),
        (MOBILE, {"n_heads_per_layer": 3}, "n_heads_per_layer"),
    ):
        with pytest.raises(ValueError, match=name):
            infer_config(recognize(shapes_of(config)), given=to_upstream(config) | option)
    shapes = shapes_of(VICLIP)
    del shapes["text_encoder.ln_final.bias"]
    found = recognize(shapes | {"vision_encoder.more": (1,)})
    with pytest.raises(CheckpointMisfit, match="1 keys missing, 1 extra"):
        plan(found, infer_config(found, given=HEADS))


def test_a_file_and_its_vocabulary_become_a_model(make_state, tmp_path):
    save_file(make_state(VICLIP), tmp_path / "a.safetensors")
    request = Request(options=HEADS, changes={"max_text_length": 5})
    with pytest.raises(ValueError, match="tokenizer's files bpe_simple_vocab_16e6.txt.gz"):
        convert([tmp_path / "a.safetensors"], tmp_path / "model", request)
    vocabulary = write_merges(tmp_path)
    convert([tmp_path / "a.safetensors"], tmp_path / "model", request)
    model = saved_model.load(tmp_path / "model")
    assert model.config.text.max_length == model.preprocessing.text.max_length == 5
    assert model.preprocessing.video.resize == "bicubic_square"
    tokenizer = tokenizer_of(model.preprocessing.text, model.tokenizer_files)
    assert tokenizer(["red ring"])[0].shape == (1, 5)
    assert list(model.tokenizer_files) == [vocabulary.name]
