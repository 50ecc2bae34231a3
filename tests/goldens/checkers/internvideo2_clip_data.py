"""Texts, frames, losses, schedules and metrics of InternVideo2-CLIP."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkers.internvideo2_stage2_data import square_transforms
from comparison import assert_gradients_close, assert_table_close, assert_tensors_close
from golden import Golden, checker

from internvideo_jax.data.llama_tokenizer import LlamaTokenizer, read_pieces
from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.data.transforms.sampling import interval_bounds, interval_indices
from internvideo_jax.nn.normalization import l2_normalize
from internvideo_jax.objectives.contrastive import (
    contrastive_loss,
    same_ids,
    similarities,
    unit_vectors,
)
from internvideo_jax.training.schedules import floored_cosine


def vocabulary_of(golden: Golden) -> Path:
    """The sentencepiece model that a table names: a file beside it, or one with its SHA-256.

    Vocabularies lie in `tokenizers`, beside the folder of goldens or in the shared one.
    """
    name = golden.table["model"]
    found = re.search(r"sha256 ([0-9a-f]{64})", name)
    if not found:
        return golden.file.path.parent / name.split()[0]
    roots = [golden.file.path.parents[2], Path(os.environ.get("INTERNVIDEO_SHARED", "."))]
    for path in (path for root in roots for path in sorted(root.glob("tokenizers/*.model"))):
        if hashlib.sha256(path.read_bytes()).hexdigest() == found[1]:
            return path
    pytest.skip(f"no vocabulary with the SHA-256 {found[1]} beside the goldens")


@checker("internvideo2_clip.tokenizer_llama_alpaca", "internvideo2_clip.tokenizer_llama_tiny")
def check_tokenizer(golden: Golden) -> None:
    table = golden.table
    length = table["max_length"]
    tokenize = LlamaTokenizer(vocabulary_of(golden), length, table["prefix"])
    ids, mask = tokenize([case["text"] for case in table["cases"]])
    for row, row_mask, case in zip(ids, mask, table["cases"], strict=True):
        wanted = case["ids"]
        assert (wanted[0], wanted[-1]) == (table["bos"], table["eos"])
        padding = length - len(wanted)
        assert row.tolist() == wanted + [table["pad"]] * padding, case["text"]
        assert row_mask.tolist() == [1] * len(wanted) + [0] * padding


@checker("internvideo2_clip.tiny_llama_sp")
def check_tiny_vocabulary(golden: Golden) -> None:
    """The tables beside it say what it makes of texts."""
    pieces = read_pieces(golden.file.path)
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) == (0, 1, 2)


@checker("internvideo2_clip.pre_text")
def check_captions(golden: Golden) -> None:
    for case in golden.table["cases"]:
        assert clean_caption(case["text"]) == case["out"]
        assert clean_caption(case["text"], 5) == case["out_max5"]


@checker("internvideo2_clip.frame_indices")
def check_frame_indices(golden: Golden) -> None:
    for case in golden.table["cases"]:
        wanted, length, sample = case["num_frames"], case["vlen"], case["sample"]
        first, last = interval_bounds(length, wanted)
        if sample == "middle":
            assert interval_indices(length, wanted).tolist() == case["indices"]
        elif sample == "rand":
            # Frames at a place in every interval, which no released recipe takes; its bounds.
            filled = np.pad(first, (0, wanted - len(first)), mode="edge")
            start = np.minimum(filled + case["fix_start"], length - 1)
            assert start.tolist() == case["indices_middle_fix_start"]
        elif sample == "rand_ranges":
            assert np.stack([first, last], axis=1).tolist() == case["half_open_ranges"]
        else:
            # Frames at a rate, which no released recipe takes.
            assert sample.startswith("fps")


@checker("internvideo2_clip.transform")
def check_transforms(golden: Golden) -> None:
    c = golden.config
    box = c["train_box"]
    c.expect(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    frames = np.moveaxis(golden["in/frames_uint8"], 1, -1)
    assert frames.shape[:3] == (c["T"], c["H"], c["W"])
    crop = [box[name] for name in ("top", "left", "height", "width")]
    values = square_transforms(frames, c["res"], crop, flip=box["flip"])
    outputs = golden.group("out/")
    # With antialiasing, as later versions of torchvision have it and the released models have not.
    outputs = {n: x for n, x in outputs.items() if not n.startswith("antialias/")}
    named = {
        "resized_uint8": values["test_bytes"],
        "normalized": values["test"],
        "train_crop_flip": values["train"],
    }
    assert_tensors_close({f"no_antialias/{n}": x for n, x in named.items()}, outputs)


@checker("internvideo2_clip.loss_vtc")
def check_contrastive(golden: Golden) -> None:
    # Sizes of the inputs, whose temperature is among them.
    golden.config.ignore("B", "C", "L", "temp")
    ids = jnp.asarray(golden["in/idx"])
    vision, text, temperature = (golden[f"in/{n}"] for n in ("vision", "text", "temp"))
    tokens = golden["in/vision_tokens"]

    def loss(*inputs: Any) -> jax.Array:
        return contrastive_loss(*inputs, ids)

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
        vision, text, temperature
    )
    texts = unit_vectors(text)
    # Upstream's similarities of tokens come before what is done with them.
    units = np.moveaxis(np.asarray(l2_normalize(jnp.asarray(tokens))), 1, 0)
    one_by_one = jnp.stack([similarities(clips, texts, temperature) for clips in units])
    same = same_ids(ids, ids).astype(np.float32)
    mean = similarities(unit_vectors(jnp.asarray(tokens)), texts, temperature)
    values = {
        "loss": value,
        "loss_no_idx": contrastive_loss(vision, text, temperature, jnp.arange(len(ids))),
        "loss_tokens": loss(tokens, text, temperature),
        "sim": similarities(unit_vectors(vision), texts, temperature),
        "sim_tokens_v2t": mean,
        "sim_tokens_t2v": mean.T,
        "sim_tokens_max_v2t": one_by_one.max(0),
        "sim_tokens_max_t2v": one_by_one.max(0).T,
        "targets": same / same.sum(1, keepdims=True),
    }
    assert_tensors_close(values, golden.group("out/"))
    named = dict(zip(("vision", "text", "temp"), gradients, strict=True))
    assert_gradients_close(named, golden.group("grad/"))


@checker("internvideo2_clip.loss_vtc_gather")
def check_gathered_contrastive(golden: Golden) -> None:
    c = golden.config
    c.ignore("C", "temp")
    world, ids = c["world"], jnp.asarray(golden["in/idx"])
    assert len(ids) == world * c["per_rank"]
    inputs = tuple(golden[f"in/{name}"] for name in ("vision", "text", "temp"))

    def differentiated(scale: float) -> Any:
        def loss(*inputs: Any) -> jax.Array:
            return contrastive_loss(*inputs, ids, gradient_scale=scale)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)

    value, (vision, text, temperature) = differentiated(1.0)
    assert_tensors_close({"loss": value}, golden.group("out/"))
    ours = {
        **dict.fromkeys(("vision_global", "vision_rank_local"), vision),
        **dict.fromkeys(("text_global", "text_rank_local"), text),
        "temp_global": temperature,
        "temp_each_rank": np.full(world, temperature),
    }
    assert_gradients_close(ours, golden.group("grad/"))
    # What reaches upstream's encoders, whose gradients are averaged over the ranks.
    _, scaled = differentiated(1 / world)
    assert_tensors_close(
        {"vision": scaled[0], "text": scaled[1], "temp": scaled[2]},
        {"vision": vision / world, "text": text / world, "temp": temperature},
    )


@checker("internvideo2_clip.lr_schedule")
def check_schedule(golden: Golden) -> None:
    for case in golden.table["cases"]:
        total = case["total"]
        # Upstream's rises again behind the last step.
        expected = np.asarray(case["multipliers"][: total + 1], np.float32)
        schedule = floored_cosine(1.0, case["min"], total, case["warmup"])
        ours = np.asarray(schedule(np.arange(len(expected))))
        assert_tensors_close({"multipliers": ours}, {"multipliers": expected})
    assert_table_close(sorted(golden.table), ["cases", "note", "upstream"])
