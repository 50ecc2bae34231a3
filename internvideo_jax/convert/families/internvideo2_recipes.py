"""How reference activations are run through the video ViT and the models built on it."""

import re
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.models import video_encoder
from internvideo_jax.objectives.classification import soft_cross_entropy
from internvideo_jax.training.masking import mask_to_kept


def prepare(inputs: Arrays) -> Arrays:
    """Videos `[B, T, H, W, 3]`, and for a mask `[B, N]`, true where a token is dropped, `kept`."""
    if "mask" in inputs:
        inputs["kept"] = mask_to_kept(inputs.pop("mask").astype(bool))
    return inputs | {"video": np.moveaxis(inputs["video"], 1, -1)}


def _hidden(
    module: Any,
    variables: Arrays,
    video: jax.Array,
    wanted: Collection[str],
    kept: jax.Array | None = None,
) -> Arrays:
    """Intermediate values of the encoder inside a model, as far as they are wanted."""
    if not any(name.startswith("hidden/") for name in wanted):
        return {}
    encoder, variables = video_encoder(module, variables)
    blocks = (re.fullmatch(r"hidden/blocks\.(\d+)", name) for name in wanted)
    layers = tuple(sorted(i for m in blocks if m and (i := int(m[1])) < encoder.config.depth))
    output, state = encoder.apply(
        variables,
        video,
        kept,
        hidden_layers=layers,
        capture_intermediates=lambda module, _: module.name == "patch_embed",
    )
    steps = video.shape[1] // encoder.config.tubelet_size
    (patches,) = state["intermediates"]["patch_embed"]["__call__"]
    values = {f"hidden/blocks.{layer}": output.hidden_states[i] for i, layer in enumerate(layers)}
    values["hidden/clip_projector"] = output.pooled
    values["hidden/patch_embed"] = patches.reshape(len(video), steps, -1, patches.shape[-1])
    return values


def _run_encoder(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    return _hidden(module, variables, inputs["video"], reference.outputs)


def _run_classifier(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    output, state = module.apply(
        variables,
        inputs["video"],
        deterministic=not reference.train_mode,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: module.name in ("fc_norm", "down_norm"),
        rngs={"dropout": jax.random.key(0)},
    )
    values = _hidden(module, variables, inputs["video"], reference.outputs)
    for name, captured in state["intermediates"].items():
        values[f"hidden/{name}"] = captured["__call__"][0]
    if module.config.merge_norm != "ln" and "hidden/down_norm" in values:
        # Upstream's batch norm sees channels before rows.
        values["hidden/down_norm"] = values["hidden/down_norm"].swapaxes(1, 2)
    for name, array in state.get("batch_stats", {}).get("down_norm", {}).items():
        values[f"buffer_after/down_norm.running_{name}"] = array
    values["logits"] = output.logits
    if "soft_target" in inputs:
        values["loss_soft_ce"] = soft_cross_entropy(output.logits, inputs["soft_target"])
    return values


def _run_student(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    output = module.apply(variables, inputs["video"], inputs["kept"])
    values = _hidden(module, variables, inputs["video"], reference.outputs, inputs["kept"])
    values |= {"clip_middle": output.clip_middle, "clip_final": output.clip_final}
    return values if output.mae is None else values | {"mae": output.mae}


def _run_teacher(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    video = inputs["video"]
    output = module.apply(variables, video)
    clips = video.reshape(-1, 1, *video.shape[2:]) if module.config.per_frame else video
    values = _hidden(module, variables, clips, reference.outputs)
    if "hidden/patch_embed" in values:
        # One row per frame either way.
        patches = values["hidden/patch_embed"]
        values["hidden/patch_embed"] = patches.reshape(len(video), -1, *patches.shape[2:])
    values |= {"norm_clip_middle": output.middle, "norm_clip_final": output.final}
    return values | {"attn": output.attention}


# Names of submodules upstream.
_HOOKS = ((r"(patch_embed|blocks\.\d+|clip_projector|fc_norm|down_norm)", r"hidden/\1"),)
_TARGETS = ("norm_clip_middle", "norm_clip_final", "attn")

RECIPES = {
    "video_vit": Recipe(("video",), _run_encoder, prepare, _HOOKS, ("hidden/clip_projector",)),
    "video_classifier": Recipe(("video",), _run_classifier, prepare, _HOOKS, ("logits",)),
    "stage1_student": Recipe(
        ("video", "mask"), _run_student, prepare, _HOOKS, ("clip_middle", "clip_final", "mae")
    ),
    "distill_student": Recipe(
        ("video", "mask"), _run_student, prepare, _HOOKS, ("clip_middle", "clip_final")
    ),
    "teacher": Recipe(("video",), _run_teacher, prepare, _HOOKS, _TARGETS),
}
