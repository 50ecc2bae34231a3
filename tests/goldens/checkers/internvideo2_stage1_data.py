"""Frame sampling, augmentation, evaluation views and their merging in stage 1."""

import itertools
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from comparison import assert_table_close, assert_tensor_close, assert_tensors_close
from golden import Golden, checker

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.transforms import augmentation, sampling, views
from internvideo_jax.data.transforms import frames as transforms
from internvideo_jax.data.transforms.frames import Box
from internvideo_jax.data.transforms.randaugment import (
    KINDS,
    Operation,
    apply_operations,
    draw_operations,
    operation_at,
    parse_policy,
)
from internvideo_jax.evaluation.classification import merge_views, top_k_accuracy
from internvideo_jax.evaluation.runner import distinct_views
from internvideo_jax.preprocessing import VideoPreprocessing, normalize


class LegacyDraws:
    """Integers as upstream drew them: `numpy.random.randint` after `numpy.random.seed`.

    NumPy promises never to change that stream.
    """

    def __init__(self, seed: int):
        self._state = np.random.RandomState(seed)

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        return self._state.randint(low, high, size=size)


@checker("internvideo2_stage1.frame_sampling")
def check_frame_sampling(golden: Golden) -> None:
    check = {
        "sparse": sparse,
        "interval": interval,
        "dense": dense,
        "tsn_video": tsn_video,
        "tsn_rawframe": tsn_frames,
        "pretrain_sparse": pretraining,
    }
    ours, expected = {}, {}
    for number, record in enumerate(golden.table["records"]):
        mode = record.get("mode", "train")
        name = f"{number} {record['sampler']} {mode} of {record['num_frames_in_video']}"
        ours[name] = np.asarray(check[record["sampler"]](record, mode)).tolist()
        expected[name] = record["indices"]
    assert expected
    assert_table_close(ours, expected)


def sparse(record: Mapping[str, Any], mode: str) -> Any:
    frames, wanted = record["num_frames_in_video"], record["clip_len"]
    if mode == "train":
        # Python's generator; `sparse_indices` draws from the same bounds, both inclusive.
        draw = random.Random(record["seed"])
        low, high = sampling.sparse_bounds(frames, wanted)
        return [draw.randint(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return sampling.sparse_indices(frames, wanted, view=test_view(record, mode))


def interval(record: Mapping[str, Any], mode: str) -> Any:
    # Upstream goes by a constant rate; `frame_range` by timestamps, a frame or two apart.
    num_frames = record["num_frames_in_video"]
    total, start, end = (record[key] for key in ("total_time", "start_time", "end_time"))
    fps = num_frames / total
    first = min(int(fps * start), num_frames - 1)
    count = min(max(int(fps * (end - start)), 1), num_frames - first)
    inner = {**record, "num_frames_in_video": count}
    return np.add(first, sparse(inner, mode))


def dense(record: Mapping[str, Any], mode: str) -> Any:
    frames, wanted = record["num_frames_in_video"], record["clip_len"]
    rate = record["frame_sample_rate"]
    if mode == "validation":
        # Upstream's window, which may begin before the video; ours lies in its middle.
        end = (frames - wanted * rate) // 2
        return sampling.dense_window_indices(frames, wanted, rate, end)
    rng: Any = LegacyDraws(record.get("seed", 0)) if mode == "train" else None
    return sampling.dense_indices(frames, wanted, rate, rng, view=test_view(record, mode))


def test_view(record: Mapping[str, Any], mode: str) -> sampling.View | None:
    return (record["chunk_nb"], record["test_num_segment"]) if mode == "test" else None


def tsn_video(record: Mapping[str, Any], mode: str) -> Any:
    frames, wanted = record["num_frames_in_video"], record["num_segment"]
    if mode != "test":
        rng: Any = LegacyDraws(record["seed"]) if mode == "train" else None
        return sampling.tsn_indices(frames, wanted, rng)
    two = [sampling.tsn_indices(frames, wanted, view=(c, 2)) for c in range(2)]
    # Upstream fills up to more than two views with the start of the last segment; ours differ.
    filling = int(frames / wanted * (wanted - 1))
    return np.sort([*np.concatenate(two), *[filling] * wanted * (record["test_num_segment"] - 2)])


def tsn_frames(record: Mapping[str, Any], mode: str) -> Any:
    frames, wanted = record["num_frames_in_video"], record["num_segment"]
    if mode == "test":
        count = record["test_num_segment"]
        all_views = [
            sampling.tsn_frame_indices(frames, wanted, view=(c, count)) for c in range(count)
        ]
        return np.stack(all_views, axis=1).ravel()
    rng: Any = LegacyDraws(record["seed"]) if mode == "train" else None
    return sampling.tsn_frame_indices(frames, wanted, rng)


def pretraining(record: Mapping[str, Any], mode: str) -> Any:
    rng: Any = LegacyDraws(record["seed"])
    frames, wanted = record["num_frames_in_video"], record["num_segments"]
    # Upstream reads the frame before the drawn one.
    return sampling.pretraining_indices(frames, wanted, rng) + record["start_index"] - 1


@checker("internvideo2_stage1.randaugment")
def check_rand_augment(golden: Golden) -> None:
    c = golden.config
    # Says which release made the file; the operations are the same since 5.2.
    c.ignore("pillow")
    image, expected = golden["in/image"][None], {}
    options = {"interpolation": c["interpolation"], "fill": tuple(c["fill"])}
    results = {}
    for case in c["ops"]:
        key, arguments = case["key"], case["args"]
        name, _, level = key.rpartition("_m")
        operation = Operation(name, arguments[0] if arguments else 0.0)
        results[key] = apply_operations(image, [operation], **options)[0]
        expected[key] = golden[f"out/{key}"]
        signed = {operation_at(name, float(level), sign).argument for sign in (1, -1)}
        assert any(np.isclose(operation.argument, a, rtol=1e-6) for a in signed), (key, signed)
    assert {key.rpartition("_m")[0] for key in results} <= set(KINDS)
    assert_tensors_close(results, expected)
    pair = np.stack([image[0], image[0][:, ::-1]])
    _check_pipeline(golden, pair, c["pipeline"], options)


def _check_pipeline(
    golden: Golden, pair: np.ndarray, pipeline: str, options: dict[str, Any]
) -> None:
    """Recorded by seed only: whatever can be measured lies among what our own draws give."""
    rng, policy = np.random.default_rng(0), parse_policy(pipeline)
    ours = np.array(
        [
            _statistics(apply_operations(pair, draw_operations(rng, policy), **options))
            for _ in range(1000)
        ]
    )
    for name in golden.names("out/pipeline_seed"):
        recorded = golden[name]
        assert recorded.dtype == np.uint8
        assert recorded.shape == pair.shape
        statistics = _statistics(recorded)
        # A little room: of 1000 draws one may be the most extreme by chance.
        low, high = ours.min(axis=0), ours.max(axis=0)
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
        assert np.all((statistics >= low) & (statistics <= high)), (name, statistics, low, high)


def _statistics(frames: np.ndarray) -> np.ndarray:
    """Mean, contrast and range of both frames together, and how far one is the other's mirror."""
    values = frames.astype(np.float64)
    mirror = np.abs(values[0] - values[1][:, ::-1]).mean()
    return np.array([values.mean(), values.std(), values.min(), values.max(), mirror])


@checker("internvideo2_stage1.train_augment")
def check_train_augment(golden: Golden) -> None:
    c = golden.config
    meta, size, height, width = c["meta"], c["crop"], c["h"], c["w"]
    # [C, T, H, W] in the file, [T, H, W, C] here.
    clip, frames = np.moveaxis(golden["in/clip"], 0, -1), golden["in/pil_frames"]
    assert clip.shape[1:3] == frames.shape[1:3] == (height, width)
    _check_multi_scale_tables(meta, height, width, size)
    for name in meta:
        kind = name.rpartition("_seed")[0]
        if kind == "rrc":
            box = Box(*meta[name]["i_j_h_w"])
            ours = transforms.resized_crop(clip, box, size)
            ours = ours[:, :, ::-1] if meta[name]["flip"] else ours
            assert_tensor_close(name, np.moveaxis(ours, -1, 0), golden[f"out/{name}"])
        elif kind == "erase":
            _check_erasing(name, Box(*meta[name]["top_left_h_w"]), golden)
        elif kind == "multiscale":
            w, h, left, top = meta[name]["crop_w_h_off_w_h"]
            assert (h, w) in augmentation.multi_scale_crops(height, width, size)
            assert (top, left) in augmentation.multi_scale_offsets(height, width, h, w)
            draw = augmentation.PretrainingDraw(Box(top, left, h, w), flip=False)
            ours = augmentation.apply_pretraining(frames, draw, size)
            assert_tensor_close(name, ours, golden[f"out/{name}"])
    for name in golden.names("out/pretrain_transform_seed"):
        _check_some_draw(name, frames, size, golden[name])


def _check_multi_scale_tables(meta: Any, height: int, width: int, size: int) -> None:
    sides = augmentation.multi_scale_crops(height, width, size)
    expected = meta["multiscale_sizes"]
    near = [
        (h, w)
        for (i, h), (j, w) in itertools.product(enumerate(expected), repeat=2)
        if abs(i - j) <= 1
    ]
    assert_table_close(sorted(sides), sorted(near), where="multiscale_sizes")
    # The file does not say which crop these are the places of.
    recorded = [(top, left) for left, top in meta["multiscale_offsets_first_pair"]]
    shapes = itertools.product(range(1, height + 1), range(1, width + 1))
    assert any(
        sorted(recorded) == sorted(augmentation.multi_scale_offsets(height, width, *shape))
        for shape in shapes
    ), recorded


def _check_erasing(name: str, box: Box, golden: Golden) -> None:
    before, expected = golden[f"in/{name}"], golden[f"out/{name}"]
    # [T, C, H, W] in the file. The noise itself came from torch's generator.
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    noise = np.moveaxis(expected[:, :, rows, columns], 1, -1)
    ours = transforms.erase(np.moveaxis(before, 1, -1), box, noise)
    assert_tensor_close(name, np.moveaxis(ours, -1, 1), expected)
    # Five standard errors: independent numbers of N(0, 1) in every frame, channel and pixel.
    count = noise.size
    assert abs(noise.mean()) < 5 / np.sqrt(count)
    assert abs((noise**2).mean() - 1) < 5 * np.sqrt(2 / count)
    assert len(np.unique(noise)) > 0.99 * count


def _check_some_draw(name: str, frames: np.ndarray, size: int, recorded: np.ndarray) -> None:
    """Recorded by seed only, but the draws are few: one of them gives exactly this."""
    height, width = frames.shape[1:3]
    # [T * C, H, W] in the file.
    expected = np.moveaxis(recorded.reshape(len(frames), 3, size, size), 1, -1)
    boxes = {
        Box(*offset, *sides)
        for sides in augmentation.multi_scale_crops(height, width, size)
        for offset in augmentation.multi_scale_offsets(height, width, *sides)
    }
    candidates = [
        augmentation.apply_pretraining(frames, augmentation.PretrainingDraw(box, flip), size)
        for box, flip in itertools.product(sorted(boxes), (False, True))
    ]
    ours = [normalize(x, VideoPreprocessing()) for x in candidates]
    nearest = min(ours, key=lambda x: np.abs(x - expected).max())
    assert_tensor_close(name, nearest, expected)


@checker("internvideo2_stage1.eval_views")
def check_eval_views(golden: Golden) -> None:
    c = golden.config
    video, short_side = golden["in/video"], c["short_side"]
    plan = DataConfig(
        num_frames=c["frames"],
        image_size=short_side,
        segments=c["test_num_segment"],
        crops=c["test_num_crop"],
    )
    chosen = video[views.view_indices(plan, len(video)).ravel()]
    frames = np.stack([transforms.resize_short_side(frame, short_side) for frame in chosen])
    order = [[segment, crop] for segment in range(plan.segments) for crop in range(plan.crops)]
    assert [row[:2] for row in c["view_order_chunk_split_id_label"]] == order
    ours = {f"test_view{i}": view for i, view in enumerate(views.cut_views(plan, frames))}
    resized = np.stack(
        [
            transforms.resize_short_side(frame, short_side)
            for frame in video[sampling.uniform_indices(len(video), c["frames"])]
        ]
    )
    ours["validation"] = transforms.center_crop(resized, c["crop"])
    # [C, T, H, W] in the file.
    normalized = {
        name: np.moveaxis(normalize(x, VideoPreprocessing()), -1, 0) for name, x in ours.items()
    }
    assert_tensors_close(normalized, golden.group("out/"))


@checker("internvideo2_stage1.merge_views")
def check_merge_views(golden: Golden) -> None:
    records = golden.table["records"]
    ids, logits, segments, crops, labels = (
        np.array([record[key] for record in records])
        for key in ("id", "logits", "chunk", "split", "label")
    )
    _, clips = np.unique(ids, return_inverse=True)
    views = distinct_views(clips, segments, crops)
    probabilities = merge_views(clips[views], logits[views].astype(np.float32))
    _, first = np.unique(clips, return_index=True)
    truth = labels[first]
    ours = {f"top{k}": top_k_accuracy(probabilities, truth, k) for k in (1, 5)}
    assert_table_close(ours, {key: golden.table[key] for key in ours})
