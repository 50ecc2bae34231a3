"""The video tower of stage 2, its position tables, and whole models with all of their losses."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from checkers.internvideo2_stage1_functions import POOLER_KEY_SHIFTS
from checkers.internvideo2_stage1_models import Converted, gather_rows
from checkers.internvideo2_stage2 import convert
from comparison import assert_gradients_close, assert_tensors_close
from golden import Config, Golden, checker

from internvideo_jax.convert.engine.state_dict import to_state_dict
from internvideo_jax.models.stage2 import Stage2
from internvideo_jax.models.video_vit import video_encoder
from internvideo_jax.nn.position_embedding import resize_position_table, sincos_3d
from internvideo_jax.objectives.cross_modal import CrossModalOptions, Draws, cross_modal_losses
from internvideo_jax.objectives.distillation import distillation_loss
from internvideo_jax.objectives.masked_lm import Vocabulary, WordMasks, mask_words
from internvideo_jax.objectives.matching import Negatives, valid_negatives
from internvideo_jax.training.masking import mask_to_kept, num_kept
from internvideo_jax.training.stages.clips import resized

# Softmax takes away what a key's bias adds to its row of scores.
_KEY_BIASES = ("self.key.bias", "k_proj.bias", *POOLER_KEY_SHIFTS)

# Ids of special words in the goldens.
PAD, CLS, MASK = 0, 1, 3


def check_gradients(golden: Golden, model: Converted, gradients: Any) -> None:
    """Checks the gradients of the parameters that the config names."""
    ours = to_state_dict({"params": gradients}, model.plan)
    wanted = golden.config["grads"] or ()
    ours = {key: x for key, x in ours.items() if any(part in key for part in wanted)}
    zero = [key for key in ours if key.endswith(_KEY_BIASES)]
    assert_gradients_close(ours, golden.group("grad/"), zero=zero)


def word_masks(golden: Golden, prefix: str) -> WordMasks:
    """The draws of a call of upstream's masking."""
    names = ("masked_raw", "replace80", "random50")
    chosen = (golden[f"in/{prefix}/{name}"].astype(bool) for name in names)
    return WordMasks(*chosen, golden[f"in/{prefix}/random_words"])


def negatives(golden: Golden, prefix: str) -> Negatives:
    """The draws of a call of upstream's matching loss."""
    ids = golden["in/idx"]
    rows = (golden[f"in/{prefix}/{name}_neg_idx"] for name in ("vision", "text"))
    return Negatives(*rows, valid_negatives(ids, len(ids)))


def in_upstream_order(pairs: np.ndarray) -> np.ndarray:
    """Rows `[3 B, ...]` of matching: all that match first, not side by side with their others."""
    return pairs.reshape(-1, 3, *pairs.shape[1:]).swapaxes(0, 1).reshape(pairs.shape)


@checker("internvideo2_stage2.vision")
def check_vision(golden: Golden) -> None:
    c = golden.config
    options = {"clip_student_decoder": "Linear_Decoder", **c["ctor"]}
    options |= {"mlp_activation": "gelu_tanh" if options["use_fused_mlp"] else "gelu_erf"}
    model = convert(options, golden.group("state/"), architecture="distill_student")
    video = np.moveaxis(golden["in/video"], 1, -1)
    assert c["use_image"] == (video.shape[1] == 1)
    kept = mask_to_kept(golden["in/mask"]) if "in/mask" in golden else None
    depth = model.module.config.encoder.depth
    outputs = golden.group("out/")
    if c["x_vis_only"]:
        assert_tensors_close({"": outputs.pop("x_vis_m2")}, {"": outputs[f"block_{depth - 2}"]})
    encoder, _ = video_encoder(model.module, model.variables)

    def objective(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        output = model.module.apply({"params": params}, video, kept)
        inner, state = encoder.apply(
            {"params": params["encoder"]},
            video,
            kept,
            hidden_layers=tuple(range(depth)),
            capture_intermediates=lambda module, _: module.name == "patch_embed",
        )
        (patches,) = state["intermediates"]["patch_embed"]["__call__"]
        values = {
            "patch_embed": patches.reshape(outputs["patch_embed"].shape),
            **{f"block_{i}": x for i, x in enumerate(inner.hidden_states)},
            "x_vis": output.tokens,
            "x_pool_vis": output.pooled,
            "x_clip_align": output.clip_middle,
            "x_align": output.clip_final,
        }
        if "loss" not in outputs:
            return jnp.float32(0), values
        terms = ("clip_middle", "clip_final")
        targets = {"clip_middle": golden["in/teacher_middle"]}
        targets["clip_final"] = golden["in/teacher_final"]
        student = {"clip_middle": output.clip_middle, "clip_final": output.clip_final}
        ratios = dict(zip(terms, c["clip_loss_ratio"], strict=True))
        loss, _ = distillation_loss(student, targets, ratios)
        loss += 0.1 * (output.pooled * golden["in/probe_pool"]).sum()
        loss += 0.01 * (output.tokens * golden["in/probe_vis"]).sum()
        return loss, values | {"loss": loss}

    c.ignore("clip_loss_ratio")
    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        gradients, values = gradient(model.variables["params"])
    assert_tensors_close(values, outputs)
    check_gradients(golden, model, gradients)


@checker("internvideo2_stage2.pos_sincos3d")
def check_sincos(golden: Golden) -> None:
    tables = {
        name: sincos_3d(dim, (side, side), frames)
        for name, (dim, side, frames) in golden.config["cases"].items()
    }
    assert_tensors_close(tables, golden.group("out/"))


@checker("internvideo2_stage2.pos_interp")
def check_position_resizing(golden: Golden) -> None:
    c = golden.config
    # Which of two routines of the same arithmetic.
    c.ignore("new")
    assert c["tub"] == 1
    tables = golden.group("in/")
    video = next(iter(x for key, x in tables.items() if "img_" not in key))
    old_side = int(((video.shape[1] - 1) // c["orig_t"]) ** 0.5)
    grids = [(c["orig_t"], old_side, old_side), (c["new_t"], c["new_g"], c["new_g"])]
    resized_tables = {}
    for key, table in tables.items():
        old, new = ((1, *grid[1:]) if "img_" in key else grid for grid in grids)
        resized_tables[key] = resize_position_table(table, old, new)
    assert_tensors_close(resized_tables, golden.group("out/"))


def model_options(model: Config) -> dict[str, Any]:
    """Our converter's options of upstream's model config."""
    vision, text = model["vision_encoder"], model["text_encoder"]
    vision.ignore(
        *("name", "d_model", "clip_embed_dim", "clip_teacher", "img_size", "num_frames"),
        *("tubelet_size", "patch_size", "video_mask_type", "video_mask_ratio"),
        *("image_mask_type", "image_mask_ratio", "clip_input_resolution", "only_mask"),
    )
    text.ignore("name", "d_model")
    model.ignore("model_cls")
    assert model["multimodal"]["enable"]
    options: dict[str, Any] = {
        "vision": dict(vision["ctor"]),
        "bert": {**text["bert"], "fusion_layer": text["fusion_layer"]},
        "temp": model["temp"],
    }
    for name in ("embed_dim", "contra_dim", "av_concat_dim"):
        if name in model:
            options[name] = model[name]
    if "audio_encoder" in model:
        audio = model["audio_encoder"]
        audio.ignore("name", "d_model", "audio_model_path")
        options["beats"] = dict(audio["beats"])
    return options


def captions_of_terms(golden: Golden, criterion: Config) -> dict[str, str]:
    """The caption of each weighted term but those of features of a teacher."""
    names = golden.config["captions"]
    if "loss_caption" in criterion:
        options = criterion["loss_caption"]
        options.ignore(*options)
    return {
        term: criterion["loss_caption"].get(term, "") if names else "caption"
        for term, weight in criterion["loss_weight"].items()
        if weight and term != "uta"
    }


@checker("internvideo2_stage2.model_visual", "internvideo2_stage2.model_av")
def check_model(golden: Golden) -> None:
    c = golden.config["config"]
    c.ignore("gradient_checkpointing", "num_test_segments")
    golden.config.ignore("av")
    model = convert(model_options(c["model"]), golden.group("state/"))
    criterion = c["criterion"]
    criterion.expect(vtm_hard_neg=True, distill_final_features=True, mlm_masking_prob=0.5)
    criterion.ignore("uta_image_only", "clip_loss_ratio")
    weights = dict(criterion["loss_weight"])
    captions = captions_of_terms(golden, criterion)
    media_type = golden.config["media_type"]
    if media_type == "audio" and "mlm" in captions:
        # Upstream asks whether words of clips are masked, and names the loss after them.
        captions["amlm"] = captions["mlm"]

    inputs = media_inputs(golden, c["model"]["vision_encoder"])
    if golden.config["captions"]:
        texts = {
            name: (golden[f"in/input_ids/{name}"], golden[f"in/attention_mask/{name}"])
            for name in golden.config["captions"]
        }
    else:
        texts = {"caption": (golden["in/input_ids"], golden["in/attention_mask"])}
    ids = golden["in/idx"]
    drawn, masked = recorded_draws(golden, captions, inputs)
    size = model.module.config.text.vocab_size
    vocabulary = Vocabulary(size, pad_id=PAD, cls_id=CLS, mask_id=MASK)
    options = CrossModalOptions(match_group=len(ids), vocabulary=vocabulary)
    draws = Draws(jax.random.key(0), drawn, masked)
    outputs = golden.group("out/")
    teacher = teacher_targets(golden, inputs)

    def losses(module: Stage2) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        media: dict[Any, Any] = {}
        aligned: dict[str, jax.Array] = {}
        if "video" in inputs:
            encoded = module.encode_video(inputs["video"], inputs["kept"])
            media["video"] = encoded
            aligned = {"clip_middle": encoded.clip_middle, "clip_final": encoded.clip_final}
        if "filterbank" in inputs:
            media["audio"] = module.encode_audio(inputs["filterbank"])
        found: dict[Any, Any] = cross_modal_losses(
            module, media, texts, ids, captions, draws, options
        )
        if teacher:
            ratios = dict(zip(teacher, criterion["clip_loss_ratio"], strict=True))
            found["uta"], _ = distillation_loss(aligned, teacher, ratios)
        return found, aligned

    def objective(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        (found, _), state = model.module.apply(
            {"params": params},
            method=losses,
            mutable="intermediates",
            capture_intermediates=lambda module, _: module.name in _CAPTURED,
        )
        named = {f"loss_{term}": weights[term] * loss for term, loss in found.items()}
        if media_type == "audio" and "loss_amlm" in named:
            named["loss_mlm"] = named.pop("loss_amlm")
        total = sum(named.values(), start=jnp.float32(0))
        values = {f"loss/{name}": x for name, x in named.items()} | {"loss/total": total}
        return total, values | captured(state["intermediates"], outputs)

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        gradients, values = gradient(model.variables["params"])
    for number, term in enumerate(masked):
        shown = texts[captions[term]][0]
        masked_ids, labels = mask_words(shown, masked[term], vocabulary)
        values |= {f"mlm{number}/masked_input_ids": masked_ids, f"mlm{number}/labels": labels}
    if "teacher_input" in outputs:
        size = c["model"]["vision_encoder"]["clip_input_resolution"]
        values["teacher_input"] = np.moveaxis(resized(inputs["video"], size), -1, 1)
    # Losses that the batch's media do not have.
    zeros = {name for name, x in outputs.items() if name.startswith("loss/") and not x.any()}
    values |= {name: np.float32(0) for name in zeros - values.keys()}
    integers = {name for name, x in outputs.items() if x.dtype.kind in "iu"}
    values |= {name: np.asarray(values[name], outputs[name].dtype) for name in integers}
    assert_tensors_close(values, outputs)
    check_gradients(golden, model, gradients)


# Our modules that upstream's outputs are of.
_CAPTURED = {
    "vision_proj": "vision_proj",
    "text_proj": "text_proj",
    "audio_proj": "audio_proj",
    "audio_video_proj": "av_fusion",
    "vision_tokens": "av_concat_vision_proj",
    "audio_tokens": "av_concat_audio_proj",
    "video_match_head": "itm_head",
    "audio_match_head": "atm_head",
    "audio_video_match_head": "avtm_head",
    "vision": "vision_encoder",
    "audio": "audio_encoder",
}


def captured(modules: Mapping[str, Any], wanted: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What modules returned, by upstream's names for those that are wanted."""
    values: dict[str, Any] = {}
    for ours, theirs in _CAPTURED.items():
        for number, output in enumerate(modules.get(ours, {}).get("__call__", ())):
            if ours == "vision":
                values["vision_encoder/x_vis"] = output.tokens
                values["vision_encoder/x_pool"] = output.pooled
            elif ours == "audio":
                values[f"audio_encoder/{number}"] = output.tokens
            elif ours.endswith("_match_head"):
                values[f"{theirs}/{number}"] = in_upstream_order(output)
            else:
                values[f"{theirs}/{number}"] = output
    if "av_fusion/0" in values:
        # Computed once here, once for each loss there.
        values["av_fusion/1"] = values["av_fusion/0"]
    return {name: x for name, x in values.items() if name in wanted}


def media_inputs(golden: Golden, vision: Config) -> dict[str, Any]:
    """Clips, their kept tokens, and filterbanks."""
    inputs: dict[str, Any] = {}
    if "in/video" in golden:
        inputs["video"] = np.moveaxis(golden["in/video"], 2, -1)
    if "in/vision_mask" in golden:
        inputs["kept"] = mask_to_kept(golden["in/vision_mask"])
    elif "in/attn_order" in golden:
        # The first of each frame's tokens, in the order in which attention drew them.
        order = golden["in/attn_order"]
        frames = inputs["video"].shape[1]
        first = order[:, : num_kept(order.shape[1], vision["video_mask_ratio"])]
        rows = np.sort(first).reshape(-1, frames, first.shape[1])
        rows = rows + order.shape[1] * np.arange(frames)[:, None] + 1
        patches = rows.reshape(len(rows), -1)
        inputs["kept"] = np.pad(patches, ((0, 0), (1, 0))).astype(np.int32)
        golden["in/teacher_attn"]
    if "in/fbank" in golden:
        inputs["filterbank"] = golden["in/fbank"]
    return inputs


def recorded_draws(
    golden: Golden, captions: Mapping[str, str], inputs: Mapping[str, Any]
) -> tuple[dict[str, Negatives], dict[str, WordMasks]]:
    """The draws of each term, which the file numbers in upstream's order."""
    media = {"": "video" in inputs, "a": "filterbank" in inputs}
    media["av"] = all(media.values())

    def terms(*names: str) -> list[str]:
        prefixes = ("", "a", "av")
        return [n for p, n in zip(prefixes, names, strict=True) if media[p] and n in captions]

    matching, words = terms("vtm", "atm", "avtm"), terms("mlm", "amlm", "avmlm")
    return (
        {term: negatives(golden, f"vtm{j}") for j, term in enumerate(matching)},
        {term: word_masks(golden, f"mlm{j}") for j, term in enumerate(words)},
    )


def teacher_targets(golden: Golden, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's features at the kept tokens, if the file has them."""
    if not golden.config["teacher"]:
        return {}
    middle = gather_rows(golden["in/teacher_middle"], inputs["kept"])
    return {"clip_middle": middle, "clip_final": golden["in/teacher_final"]}
