"""Retrieval with stage 2: metrics, similarities and reranked scores."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from checkers.internvideo2_stage2 import convert
from checkers.internvideo2_stage2_models import media_inputs, model_options
from comparison import TOLERANCE, assert_tensor_close, assert_tensors_close
from golden import Config, Golden, checker

from internvideo_jax.data.decode.video import VideoReader
from internvideo_jax.evaluation.embeddings import TextEncoder, encode_media
from internvideo_jax.evaluation.known_answer import (
    CLIP_SHA256,
    demo_frames,
    demo_indices,
    demo_view,
    text_probabilities,
)
from internvideo_jax.evaluation.retrieval.evaluator import merge_views
from internvideo_jax.evaluation.retrieval.metrics import (
    Scores,
    cosine_similarity,
    dual_softmax,
    relevance,
    retrieval_metrics,
)
from internvideo_jax.evaluation.retrieval.rerank import (
    TextTokens,
    best_candidates,
    match_scores,
    reranked,
)
from internvideo_jax.preprocessing import VideoPreprocessing, normalize


def pairs(texts_of: Mapping[str, Any], *, media_of_texts: bool = False) -> np.ndarray:
    """Media and texts that belong together, by upstream's lists for either side."""
    found = []
    for query, own in texts_of.items():
        numbers = own if isinstance(own, list) else [own]
        found += [(int(query), int(number)) for number in numbers]
    return np.array(found)[:, :: -1 if media_of_texts else 1]


def check_metrics(golden: Golden, scores: Scores, relevant: np.ndarray, prefix: str) -> None:
    """Compares with metrics that are rounded to two decimals."""
    # The last of equal scores comes first there.
    then = Scores(*(np.arange(x.shape[1]) for x in (scores.of_texts, scores.of_media)))
    ours = retrieval_metrics(scores, relevant, then=then)
    expected = golden.group(prefix)
    assert_tensors_close({name: np.float32(round(ours[name], 2)) for name in expected}, expected)


@checker("internvideo2_stage2.eval_itm_metrics")
def check_retrieval_metrics(golden: Golden) -> None:
    scores = Scores(golden["in/i2t"], golden["in/t2i"])
    texts_of, media_of = (dict(golden.config[name]) for name in ("img2txt", "txt2img"))
    own = pairs(texts_of)
    relevant = relevance(own, *scores.of_texts.shape)
    np.testing.assert_array_equal(
        relevant, relevance(pairs(media_of, media_of_texts=True), *scores.of_texts.shape)
    )
    check_metrics(golden, scores, relevant, "out/metrics/")


@checker("internvideo2_stage2.eval_act_rec_prompts")
def check_prompts(golden: Golden) -> None:
    c = golden.config
    scores = Scores(golden["in/i2t"], golden["in/t2i"].T)
    # Texts are the prompts of one class after another.
    i2t, t2i = (x.reshape(len(x), -1, c["num_prompts"]).mean(axis=2) for x in (
        scores.of_texts, scores.of_media
    ))  # fmt: skip
    merged = Scores(i2t, t2i.T)
    assert_tensor_close("i2t_mean", merged.of_texts, golden["out/i2t_mean"])
    assert_tensor_close("t2i_mean", merged.of_media, golden["out/t2i_mean"])
    classes = dict(enumerate(c["img2txt"]))
    relevant = relevance(pairs({str(v): n for v, n in classes.items()}), *i2t.shape)
    listed = pairs(dict(c["txt2img"]), media_of_texts=True)
    np.testing.assert_array_equal(relevant, relevance(listed, *i2t.shape))
    check_metrics(golden, merged, relevant, "out/metrics/")


@checker("internvideo2_stage2.data_demo_indices")
def check_demo_indices(golden: Golden) -> None:
    cases = golden.config["cases"].items()
    values = {name: demo_indices(*case) for name, case in cases}
    assert_tensors_close(values, golden.group("out/"))


@checker("internvideo2_stage2.demo_frames2tensor")
def check_demo_frames(golden: Golden) -> None:
    frames, c = golden["in/frames_bgr_u8"][..., ::-1], golden.config
    size = tuple(c["size"])
    chosen = frames[demo_indices(len(frames), c["fnum"])]
    views = np.stack([demo_view(np.ascontiguousarray(frame), size) for frame in chosen])
    tensor = np.moveaxis(normalize(views, VideoPreprocessing()), -1, 1)[None]
    assert_tensor_close("tensor", tensor, golden["out/tensor"])


@checker("internvideo2_stage2.demo_clip")
def check_demo_clip(golden: Golden) -> None:
    c = golden.config
    c.ignore("file")
    path = golden.file.path.parents[2] / "clips" / "dog_snow.mp4"
    assert CLIP_SHA256 == c["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with VideoReader(path) as reader:
        frames = reader.read(range(reader.num_frames))
        seconds = np.diff(reader.timestamps(np.arange(reader.num_frames)))
        np.testing.assert_allclose(1 / seconds, c["fps"])
    assert frames.shape == (c["frames"], c["height"], c["width"], 3)
    wanted = len(c["indices"])
    assert demo_indices(len(frames), wanted).tolist() == c["indices"]
    means = frames[..., ::-1].mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    values = {
        "raw_mean_bgr": means,
        "raw_corner_bgr": frames[:, :8, :8, ::-1],
        "resized_rgb_u8": demo_frames(path, 224, wanted),
    }
    assert_tensors_close(values, golden.group("out/"))


@checker("internvideo2_stage2.demo_predict_label")
def check_demo(golden: Golden) -> None:
    c = golden.config["config"]
    c.ignore("gradient_checkpointing")
    ignore_losses(c["criterion"])
    model = convert(model_options(c["model"]), golden.group("state/"))
    batch = {"video": np.moveaxis(golden["in/video"], 2, -1)}
    texts = {"ids": golden["in/input_ids"], "mask": golden["in/attention_mask"]}
    with jax.default_matmul_precision("highest"):
        clip = encode_media(model.module, model.variables, "video", batch).embedding
        text = TextEncoder(model.module).forward(model.variables, texts).embedding
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.asarray, (clip, text))]
    (found,) = text_probabilities(*units)
    best = np.argsort(-found, kind="stable")[: golden.config["topk"]]
    values = {"vid_feat": units[0], "txt_feat": units[1], "idxs": best[None]}
    outputs = golden.group("out/")
    # Differences of cosines grow a hundredfold.
    probabilities = outputs.pop("probs")
    assert_tensor_close("probs", found[best][None], probabilities, tolerance=100 * TOLERANCE)
    assert_tensors_close(values, outputs)


def ignore_losses(criterion: Config) -> None:
    """Declares the options of training irrelevant."""
    for options in (criterion, *criterion.values()):
        if isinstance(options, Config):
            options.ignore(*options)


def softmax(rows: np.ndarray) -> np.ndarray:
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@checker("internvideo2_stage2.eval_visual", "internvideo2_stage2.eval_av")
def check_retrieval(golden: Golden) -> None:
    c, options = golden.config["config"], golden.config["evaluation"]
    golden.config.ignore("av")
    c.ignore("gradient_checkpointing")
    ignore_losses(c["criterion"])
    options.expect(eval_frame_ensemble="concat", eval_x_only=False)
    options.ignore("eval_offload")
    model = convert(model_options(c["model"]), golden.group("state/"))
    medium = golden.config["media_type"]
    outputs = golden.group("out/")

    inputs = media_inputs(golden, c["model"]["vision_encoder"])
    video, segments = inputs["video"], c.get("num_test_segments", 1)
    clips = np.repeat(np.arange(len(video)), segments)
    views = np.stack([video[:, s::segments] for s in range(segments)], axis=1)
    batch = {"video": views.reshape(-1, *views.shape[2:])}
    if medium == "audio_video":
        batch["audio"] = inputs["filterbank"]
    texts = {"ids": golden["in/input_ids"], "mask": golden["in/attention_mask"]}
    encode = jax.jit(encode_media, static_argnums=(0, 2))
    with jax.default_matmul_precision("highest"):
        media = encode(model.module, model.variables, medium, batch)
        text = jax.jit(TextEncoder(model.module).forward)(model.variables, texts)
    tokens, embedding = (merge_views(clips, np.asarray(x)) for x in (media.tokens, media.embedding))
    similarity = cosine_similarity(embedding, np.asarray(text.embedding))
    plain = Scores.symmetric(similarity)
    weighted = dual_softmax(plain)

    everything = {v: np.arange(similarity.shape[1]) for v in range(len(similarity))}
    kept = TextTokens(np.asarray(text.tokens), texts["mask"])
    logits = np.zeros_like(similarity)
    with jax.default_matmul_precision("highest"):
        for number, scores in match_scores(
            model.module, model.variables, medium, tokens.__getitem__, kept, everything,
            texts_per_pass=4,
        ):  # fmt: skip
            logits[number] = scores
    chosen = best_candidates(weighted if options["use_dsl_for_match"] else plain, options["k_test"])
    match = reranked(logits, chosen)

    values = {"cosine": similarity, "itm_logit_full": logits, "text_feats": text.tokens}
    values |= {"text_proj": text.embedding, "vision_proj": embedding, "vision_embeds": tokens}
    for name, scores in (("sim", plain), ("dsl", weighted), ("match", match)):
        # Of pairs that are no candidates.
        values[f"i2t_{name}"], values[f"t2i_{name}"] = (
            softmax(np.maximum(x, -100)) for x in (scores.of_texts, scores.of_media)
        )
    if medium == "audio_video":
        # The joint medium's are compared through all that is made of them.
        with jax.default_matmul_precision("highest"):
            alone = [
                encode(model.module, model.variables, name, batch) for name in ("video", "audio")
            ]
        for name, own in zip(("vision", "audio"), alone, strict=True):
            values |= {f"{name}_embeds": own.tokens, f"{name}_proj": own.embedding}
        assert_tensor_close(
            "tokens", tokens, np.concatenate([outputs["audio_embeds"], outputs["vision_embeds"]], 1)
        )
    for name in golden.names("out/metrics/"):
        del outputs[name.removeprefix("out/")]
    assert_tensors_close(values, outputs)

    relevant = relevance(pairs(dict(golden.config["img2txt"])), *similarity.shape)
    listed = pairs(dict(golden.config["txt2img"]), media_of_texts=True)
    np.testing.assert_array_equal(relevant, relevance(listed, *similarity.shape))
    check_metrics(golden, plain, relevant, "out/metrics/sim/")
    check_metrics(golden, weighted, relevant, "out/metrics/dsl/")
    match_name = "match (use_dsl)" if options["use_dsl_for_match"] else "match"
    check_metrics(golden, match, relevant, f"out/metrics/{match_name}/")
