"""ViCLIP and CLIP's text towers: outputs, gradients, loading rules, texts, the published demo."""

import dataclasses
import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkers.internvideo2_stage1_models import Converted
from checkers.internvideo2_stage2 import convert
from comparison import assert_gradients_close, assert_table_close, assert_tensors_close
from golden import Config, Golden, checker

from internvideo_jax.convert.engine.adaptations import inflate_patch_kernel
from internvideo_jax.convert.engine.state_dict import to_state_dict
from internvideo_jax.convert.engine.transforms import CONV2D_TO_3D, CONV3D
from internvideo_jax.convert.engine.verify import Reference, run_reference
from internvideo_jax.convert.families.clip_vision import kept_in_upstream_order
from internvideo_jax.data.clip_bpe import ClipBpe, OpenClipBpe
from internvideo_jax.data.prompts import action_prompts
from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.evaluation.known_answer import demo_indices, demo_view, text_probabilities
from internvideo_jax.models.clip_text import clip_b_text, fit_text_positions
from internvideo_jax.models.clip_vision import fit_temporal_positions
from internvideo_jax.nn.normalization import l2_normalize
from internvideo_jax.nn.position_embedding import resize_position_table
from internvideo_jax.preprocessing import VideoPreprocessing, normalize
from internvideo_jax.training.masking import MaskConfig, kept_to_mask, least_kept
from internvideo_jax.training.stages.contrastive import ContrastiveStage
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig
from internvideo_jax.training.state import merge, split_trained


def plain(config: Any) -> dict[str, Any]:
    """The options of a golden as they are, nested ones, too."""
    return {k: plain(v) if isinstance(v, Config) else v for k, v in config.items()}


def check_towers(golden: Golden, options: dict[str, Any], architecture: str) -> None:
    model = convert(options, golden.group("state/"), architecture)
    outputs = golden.group("out/")
    values = run_reference(model, Reference(golden.group("in/"), outputs))
    assert_tensors_close(values, outputs)


def check_kept(golden: Golden, ratio: float) -> None:
    """Which tokens are kept follows from the draws: those of the smallest are dropped."""
    keep, noise = golden["in/keep"], golden["in/mask_noise"]
    kept = least_kept(-jnp.asarray(noise), ratio)
    mask = kept_to_mask(kept, 1 + keep.shape[1])
    np.testing.assert_array_equal(~np.asarray(mask)[:, 1:], keep)


@checker("viclip.vision")
def check_vision(golden: Golden) -> None:
    options = plain(golden.config)
    if "masking_prob" in options:
        dropped, tokens = options.pop("n_dropped"), options.pop("n_tokens")
        keep = golden["in/keep"]
        assert keep.shape[1] == tokens
        assert (keep.sum(1) == tokens - dropped).all()
        check_kept(golden, options["masking_prob"])
    check_towers(golden, options, "clip_vision")


@checker("viclip.text", "internvideo2_clip.text_mobileclip")
def check_text(golden: Golden) -> None:
    check_towers(golden, plain(golden.config), "clip_text")


@checker("viclip.full_train")
def check_training(golden: Golden) -> None:
    c = golden.config
    is_frozen, undecayed = c["freeze_text"], c["no_weight_decay"]
    options = {name: plain(c[name]) for name in ("vision", "text")} | {"temp_min": c["temp_min"]}
    model = convert(options, golden.group("state/"))
    check_decay(model, undecayed)
    check_kept(golden, c["masking_prob"])
    video = np.moveaxis(golden["in/video"], 2, -1)
    kept = kept_in_upstream_order(golden["in/keep"], video.shape[1])
    ids, same = golden["in/tokens"], golden["in/idx"]
    vision = dataclasses.replace(model.module.config.vision, drop_path_rate=0.0)
    stage = ContrastiveStage(
        ContrastiveConfig(
            dataclasses.replace(model.module.config, vision=vision),
            mask=MaskConfig("random", c["masking_prob"]),
            text="frozen" if is_frozen else "trained",
        )
    )
    trained, fixed = split_trained(model.variables["params"], stage.trainable)
    batch = {"video": video, "text": ids, "clip_id": same}

    def embed(variables: Any) -> tuple[jax.Array, ...]:
        module: Any = model.module
        whole = module.apply(variables, video, method="encode_video").embedding
        masked = module.apply(variables, video, kept, method="encode_video").embedding
        text = module.apply(variables, ids, method="encode_text").embedding
        temperature = module.apply(variables, method="bounded_temperature")
        return whole, masked, text, temperature

    def objective(trained: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        params = merge(fixed, trained)
        loss, _ = stage.loss(params, {}, batch, {"kept": kept}, jax.random.key(0))
        return loss, embed({"params": params})

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (loss, values), gradients = gradient(trained)
    whole, masked, text, temperature = (np.asarray(x) for x in values)
    outputs = golden.group("out/")
    expected = {name: outputs.pop(name) for name in ("loss_vtc", "label_probs")}
    probabilities = text_probabilities(whole, text)
    assert_tensors_close({"loss_vtc": loss, "label_probs": probabilities}, expected)
    found = {
        "vision_embed": whole,
        "vision_embed_masked": masked,
        "text_embed": text,
        "temp_after_clamp": temperature,
        "sim_cosine": np.asarray(l2_normalize(whole) @ l2_normalize(text).T),
    }
    assert_tensors_close(found, outputs)
    assert stage.bounded(trained)["temperature"] == temperature
    gradients = merge(jax.tree.map(np.zeros_like, fixed), gradients)
    ours = to_state_dict({"params": gradients}, model.plan)
    assert_gradients_close(ours, golden.group("grad/"))


def check_decay(model: Converted, undecayed: list[str]) -> None:
    """Weight decay applies to matrices but those that upstream names."""
    module: Any = model.module

    def is_decayed(path: Any, x: np.ndarray) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return np.full(x.shape, module.is_decayed(name))

    params = model.variables["params"]
    decayed = to_state_dict({"params": jax.tree.map_with_path(is_decayed, params)}, model.plan)
    for key, mask in decayed.items():
        wanted = mask.ndim > 1 and key not in undecayed
        assert (mask == wanted).all(), key


@checker("viclip.load_rules")
def check_loading(golden: Golden) -> None:
    c, outputs = golden.config, golden.group("out/")
    frames = c["frames_old"], c["frames_new"]
    temporal, text = golden["in/temporal"], golden["in/text_pos"]
    assert (temporal.shape[1], outputs["temporal_up"].shape[1]) == frames
    assert temporal.shape[2] == c["dim"]
    tower = clip_b_text(max_length=len(text))
    conv2d = golden["in/conv2d"]
    out, inputs, height, width = conv2d.shape
    shape = (1, height, width, inputs, out)
    (kernel,) = CONV2D_TO_3D.forward((conv2d,), (shape,))
    (spatial,) = (name for name in golden.names("in/") if "spatial_pos" in name)
    values = {}
    for name, expected in outputs.items():
        kind, _, rest = name.partition("_")
        if kind == "temporal":
            values[name] = fit_temporal_positions(temporal, expected.shape[1])
        elif kind == "text":
            values[name] = fit_text_positions(text, len(expected), tower)
        elif kind == "spatial":
            old, new = (int(len(x) ** 0.5) for x in (golden[spatial], expected))
            table = golden[spatial][None]
            values[name] = resize_position_table(table, (1, old, old), (1, new, new))[0]
        else:
            method: Any = rest.partition("_")[0]
            inflated = inflate_patch_kernel(shape, expected.shape[2], method).apply(kernel)
            assert CONV3D.inverse is not None
            (values[name],) = CONV3D.inverse((inflated,))
    assert_tensors_close(values, outputs)


@checker("viclip.demo_preprocess")
def check_demo(golden: Golden) -> None:
    frames, c = golden["in/frames_bgr_uint8"][..., ::-1], golden.config
    assert len(frames) == c["n"]
    picked = demo_indices(len(frames), c["fnum"])
    size = tuple(c["target_size_wh"])
    views = [demo_view(np.ascontiguousarray(frames[i]), size) for i in picked]
    tensor = np.moveaxis(normalize(np.stack(views), VideoPreprocessing()), -1, 1)[None]
    assert_tensors_close({"picked": picked, "tensor": tensor}, golden.group("out/"))


@checker("viclip.tokenizer_clip_bpe", "internvideo2_clip.tokenizer_clip_bpe")
def check_tokens(golden: Golden) -> None:
    table = golden.table
    path = vocabulary(golden, table["vocab_file"])
    with gzip.open(path) as file:
        assert hashlib.sha256(file.read()).hexdigest() == table["sha256_uncompressed"]
    classes = {"viclip": ClipBpe, "mobileclip": OpenClipBpe}
    columns = [name for name in table["cases"][0] if name != "text"]
    texts = [case["text"] for case in table["cases"]]
    for column in columns:
        kind, _, length = column.rpartition("_ctx")
        tokenizer = classes[kind](path, int(length))
        assert tokenizer.vocab_size == table["eot"] + 1 == table["sot"] + 2
        ids, mask = tokenizer(texts)
        for case, row, seen in zip(table["cases"], ids, mask, strict=True):
            wanted = np.full(int(length), table["pad_id"])
            wanted[: len(case[column])] = case[column]
            np.testing.assert_array_equal(row, wanted, err_msg=f"{column}: {case['text']!r}")
            assert seen.sum() == len(case[column])


def vocabulary(golden: Golden, name: str) -> Path:
    """The vocabulary beside the goldens, or that of the reference data."""
    roots = [golden.file.path.parents[2], Path(os.environ.get("INTERNVIDEO_SHARED", ""))]
    paths = [root / "tokenizers" / f"clip_{name}" for root in roots]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        pytest.skip(f"no {paths[0].name}; the reference data is found through INTERNVIDEO_SHARED")
    return found


@checker("viclip.action_prompts", "internvideo2_clip.action_prompts")
def check_prompts(golden: Golden) -> None:
    templates = action_prompts("k400")
    assert_table_close(list(templates), golden.table["templates"])
    for case in golden.table["cases"]:
        prompts = [clean_caption(t.replace("{}", case["cls"])) for t in templates]
        assert_table_close(prompts, case["prompts"], where=case["cls"])
