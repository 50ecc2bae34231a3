"""InternVideo2-CLIP's video tower, whole models with their loss, and its image teacher."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from checkers.internvideo2_stage1_functions import POOLER_KEY_SHIFTS
from checkers.internvideo2_stage1_models import Converted
from checkers.internvideo2_stage1_models import convert as convert_stage1
from checkers.internvideo2_stage2 import convert
from comparison import assert_gradients_close, assert_tensors_close
from golden import Golden, checker

from internvideo_jax.convert.engine.state_dict import to_state_dict
from internvideo_jax.convert.engine.transforms import CONV2D_TO_3D, CONV3D
from internvideo_jax.convert.engine.verify import Reference, run_reference
from internvideo_jax.convert.families.internvideo2_clip import with_image_positions
from internvideo_jax.models import build
from internvideo_jax.models.llama_text import LlamaTextConfig
from internvideo_jax.nn.position_embedding import (
    resize_position_table,
    sincos_1d,
    sincos_2d,
    sincos_3d,
)
from internvideo_jax.objectives.contrastive import unit_vectors
from internvideo_jax.training.optimizer import map_paths
from internvideo_jax.training.stages.contrastive import ContrastiveStage
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig


@checker("internvideo2_clip.vision")
def check_vision(golden: Golden) -> None:
    options = dict(golden.config)
    model = convert(options, golden.group("state/"), architecture="video_vit")
    config = with_image_positions(model.module.config)
    blocks = tuple(range(config.depth))
    # A block of zeros gives what enters it.
    module, before = build(config), build(dataclasses.replace(config, depth=1))

    def run(variables: Any, clips: Any) -> dict[str, Any]:
        params = variables["params"]
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), params["blocks"])
        without_blocks = {**params, "blocks": zeros}
        output, state = module.apply(
            variables,
            clips,
            hidden_layers=blocks,
            capture_intermediates=lambda module, _: module.name == "patch_embed",
        )
        (patches,) = state["intermediates"]["patch_embed"]["__call__"]
        steps = clips.shape[1] // config.tubelet_size
        return {
            "patch_embed": patches.reshape(len(clips), steps, -1, config.width),
            "after_pos_embed": before.apply({"params": without_blocks}, clips).tokens,
            **{f"block_{i}": x for i, x in enumerate(output.hidden_states)},
            "embed": output.pooled,
        }

    outputs = golden.group("out/")
    values: dict[str, Any] = {}
    with jax.default_matmul_precision("highest"):
        (example,) = before.example_inputs()
        initial = nn.unbox(jax.jit(before.init)(jax.random.key(0), jnp.zeros(example.shape)))
        for medium in ("video", "image"):
            if f"in/{medium}" in golden:
                clips = np.moveaxis(golden[f"in/{medium}"], 1, -1)
                found = jax.jit(run)(model.variables, clips)
                values["embed" if medium == "video" else "embed_image"] = found.pop("embed")
                values |= {f"{medium}/{name}": x for name, x in found.items()}
    values |= {f"init_{name}": x for name, x in initial["params"].items() if "pos_embed" in name}
    assert outputs.keys() <= values.keys()
    assert_tensors_close({name: values[name] for name in outputs}, outputs)


def convert_whole(golden: Golden) -> Converted:
    """The model of a golden, its adapters kept."""
    c = golden.config
    options: dict[str, Any] = {"vision_encoder": dict(c["vision_encoder"])}
    if "text" in c:
        text = dict(c["text"]) | {"text_cfg": dict(c["text"]["text_cfg"])}
        c["text"]["image_cfg"].ignore(*c["text"]["image_cfg"])
        options |= {"text_encoder": text, "align_dim": c["align_dim"]}
    else:
        text = {"llama": dict(c["llama"])}
        if c["use_lora"]:
            text |= {"lora_r": c["lora"]["r"], "lora_alpha": c["lora"]["alpha"], "keep_lora": True}
        options["text_encoder"] = text
    return convert(options, golden.group("state/"))


@checker("internvideo2_clip.full_llama", "internvideo2_clip.full_mobileclip")
def check_whole(golden: Golden) -> None:
    c = golden.config
    model = convert_whole(golden)
    video = np.moveaxis(golden["in/video"], 2, -1)
    ids, clip_ids = jnp.asarray(golden["in/text_tokens"]), jnp.asarray(golden["in/idx"])

    stage = _stage(golden, model)
    batch = {"video": video, "text": ids, "clip_id": clip_ids}

    def objective(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        def call(method: str, *inputs: Any) -> Any:
            return model.module.apply({"params": params}, *inputs, method=method)

        clips, texts = call("encode_video", video), call("encode_text", ids)
        loss, (metrics, _) = stage.loss(params, {}, batch, {}, jax.random.key(0))
        cosines = unit_vectors(clips.embedding) @ unit_vectors(texts.embedding).T
        return loss, {
            "vision_embed": clips.embedding,
            "text_embed": texts.embedding,
            "temp_after_clamp": metrics["temperature"],
            "sim_cosine": cosines,
            "sim_over_temp": cosines * call("cosine_scale"),
            "loss_vtc": loss,
        }

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        gradients, values = gradient(model.variables["params"])
    outputs = golden.group("out/")
    assert_tensors_close(values, outputs)
    # The file as it is makes a reference for `verify`.
    verified = run_reference(model, Reference(golden.group("in/"), outputs))
    assert_tensors_close(verified, {name: outputs[name] for name in outputs if name != "loss_vtc"})
    expected = golden.group("grad/")
    assert sorted(expected) == sorted(c["trainable"])
    ours = to_state_dict({"params": gradients}, model.plan)
    ours = {key: ours[key] for key in expected}
    zero = [key for key in ours if key.endswith(POOLER_KEY_SHIFTS)]
    assert_gradients_close(ours, expected, zero=zero)
    _check_decay(golden, model)
    _check_trained(golden, model, stage)


def _check_decay(golden: Golden, model: Converted) -> None:
    """Checks which parameters decay: none of those that are named, nor vectors and biases."""
    named = set(golden.config["no_weight_decay"])
    flags = map_paths(
        lambda path, x: np.full(x.shape, model.module.is_decayed(path)), model.variables["params"]
    )
    found = to_state_dict({"params": flags}, model.plan)
    ours = {key: np.unique(x).tolist() for key, x in found.items()}
    assert ours == {
        key: [key not in named and x.ndim > 1 and not key.endswith(".bias")]
        for key, x in golden.group("state/").items()
    }


def _stage(golden: Golden, model: Converted) -> ContrastiveStage:
    """Upstream's training of the model, nothing dropped at random."""
    config = model.module.config
    vision, text = dataclasses.replace(config.vision, drop_path_rate=0.0), config.text
    if isinstance(text, LlamaTextConfig) and text.lm.lora is not None:
        lora = dataclasses.replace(text.lm.lora, dropout_rate=0.0)
        text = dataclasses.replace(text, lm=dataclasses.replace(text.lm, lora=lora))
    config = dataclasses.replace(config, vision=vision, text=text)
    opened = _opened(golden)
    return ContrastiveStage(
        ContrastiveConfig(config, open_blocks=0, text="adapters" if any(opened) else "frozen")
    )


def _opened(golden: Golden) -> tuple[bool, bool]:
    """Whether the projection and the adapters of the text tower are trained."""
    c = golden.config
    return c.get("open_text_projection", False), c.get("open_text_lora", False)


def _check_trained(golden: Golden, model: Converted, stage: ContrastiveStage) -> None:
    """Checks which parameters are trained, where upstream opens both of these or none."""
    if len(set(_opened(golden))) > 1:
        return
    flags = map_paths(
        lambda path, x: np.full(x.shape, np.any(stage.trainable(path))), model.variables["params"]
    )
    found = to_state_dict({"params": flags}, model.plan)
    assert sorted(key for key, x in found.items() if x.all()) == sorted(golden.config["trainable"])


@checker("internvideo2_clip.internvl_teacher")
def check_image_teacher(golden: Golden) -> None:
    model = convert_stage1("internvl_teacher", dict(golden.config), golden.group("state/"))
    video = np.moveaxis(golden["in/video"], 1, -1)
    with jax.default_matmul_precision("highest"):
        output = jax.jit(model.module.apply)(model.variables, video)
    values = {"intermediate": output.middle, "final": output.final, "attn": output.attention}
    kernel, table = golden["in/load/patch_embed.proj.weight"], golden["in/load/pos_embed"]
    encoder = model.module.config.encoder
    dim, channels, *patch = kernel.shape
    (image,) = CONV2D_TO_3D.forward([kernel], [(1, *patch, channels, dim)])
    values["load/patch_embed.proj.weight"] = CONV3D.inverse([image])[0]
    side = int((table.shape[1] - 1) ** 0.5)
    values["load/pos_embed"] = resize_position_table(table, (1, side, side), encoder.grid)
    assert_tensors_close(values, golden.group("out/"))


@checker("internvideo2_clip.pos_embed")
def check_positions(golden: Golden) -> None:
    c = golden.config
    dim, frames, side = c["dim"], c["frames"], c["grid"]
    old = c["ckpt_frames"], c["ckpt_grid"], c["ckpt_grid"]
    values = {
        "pos_embed": resize_position_table(golden["in/pos_embed"], old, (frames, side, side)),
        "sincos_1d": sincos_1d(dim, np.arange(frames)),
        "sincos_2d": sincos_2d(dim, (side, side)),
        "sincos_3d": sincos_3d(dim, (side, side), frames),
    }
    assert_tensors_close(values, golden.group("out/"))
