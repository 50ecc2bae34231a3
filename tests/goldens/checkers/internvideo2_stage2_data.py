"""Captions, frames and pixels as stage 2 reads them."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from comparison import assert_tensors_close
from golden import Golden, checker

from internvideo_jax.data.annotations.retrieval import read_retrieval
from internvideo_jax.data.transforms.bicubic import resize_square
from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.data.transforms.frames import Box
from internvideo_jax.data.transforms.sampling import interval_bounds, interval_indices
from internvideo_jax.evaluation.retrieval.options import RetrievalOptions
from internvideo_jax.evaluation.retrieval.texts import texts_of_clips
from internvideo_jax.preprocessing import VideoPreprocessing, normalize


@checker("internvideo2_stage2.data_pre_text")
def check_captions(golden: Golden) -> None:
    c = golden.config
    assert [clean_caption(text, c.get("max_l")) for text in c["inputs"]] == c["outputs"]
    # The file's one tensor says that its case ran.
    assert golden["out/ok"].all()


@checker("internvideo2_stage2.data_ret")
def check_retrieval_lists(golden: Golden) -> None:
    c, options = golden.config, golden.config["ann_file"]
    options.expect(media_type="video")
    expected = c["outputs"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        path.write_text(json.dumps(c["annos"]), encoding="utf-8")
        root = os.path.join(folder, options["data_root"].strip("/"))
        seconds = 30.0 if options.get("trimmed30") else None
        clips = read_retrieval(path, root=root, max_seconds=seconds).records
        assert {clip.end for clip in clips} == {seconds}
        below = [os.path.relpath(clip.path, root) for clip in clips]
    texts, pairs = texts_of_clips(
        [clip.captions for clip in clips],
        RetrievalOptions(
            paragraphs=options.get("is_paragraph_retrieval", False),
            shared_captions=options.get("has_multi_vision_gt", False),
        ),
    )
    videos = [os.path.join(options["data_root"], name) for name in below]
    if c["train"]:
        options.ignore("has_multi_txt_gt")
        assert [texts[text] for _, text in pairs] == expected["captions"]
        assert [videos[clip] for clip, _ in pairs] == expected["images"]
        # Upstream takes files of one name in different folders for the same.
        names = list(dict.fromkeys(map(os.path.basename, videos)))
        found = [names.index(os.path.basename(videos[clip])) for clip, _ in pairs]
        assert found == expected["match_ids"]
    else:
        assert (list(texts), videos) == (expected["text"], expected["image"])
        # The limit is the tokenizer's.
        assert expected["max_txt_l"] == options.get("max_txt_l", 32)
        for side, name in ((0, "img2txt"), (1, "txt2img")):
            own = [
                pairs[pairs[:, side] == n, 1 - side].tolist() for n in range(len(expected[name]))
            ]
            listed = [n if isinstance(n, list) else [n] for n in expected[name]]
            assert own == listed
    assert golden["out/ok"].all()


@checker("internvideo2_stage2.data_frame_indices")
def check_frame_indices(golden: Golden) -> None:
    values = {}
    for name, (wanted, num_frames, mode, _, _) in golden.config["cases"].items():
        if mode == "middle":
            values[name] = interval_indices(num_frames, wanted)
        elif mode == "rand":
            # A draw from bounds; where some are empty, upstream draws from all frames.
            values[name] = np.stack(interval_bounds(num_frames, wanted), axis=1)
            drawn = interval_indices(num_frames, wanted, np.random.default_rng(0))
            assert len(drawn) == wanted
    outputs = golden.group("out/")
    # Frames at a rate, which no released recipe takes.
    at_a_rate = {name for name in outputs if name.startswith("fps")}
    assert_tensors_close(values, {n: x for n, x in outputs.items() if n not in at_a_rate})


def square_transforms(
    frames: np.ndarray, size: int, crop: Sequence[int], *, flip: bool
) -> dict[str, np.ndarray]:
    """Frames `[T, H, W, 3]` as tests and training read them: "NAME_bytes", and "NAME" normalised.

    Channels are the second axis.
    """
    top, left, height, width = Box(*crop)
    cut = frames[:, top : top + height, left : left + width]
    values = {}
    for name, clip in (("test", frames), ("train", cut)):
        resized = np.stack([resize_square(x, size) for x in clip])
        if name == "train" and flip:
            resized = resized[:, :, ::-1]
        values[f"{name}_bytes"] = np.moveaxis(resized, -1, 1)
        normalised = normalize(np.ascontiguousarray(resized), VideoPreprocessing())
        values[name] = np.moveaxis(normalised, -1, 1)
    return values


@checker("internvideo2_stage2.data_transforms")
def check_transforms(golden: Golden) -> None:
    c = golden.config
    frames = np.moveaxis(golden["in/frames_u8"], 1, -1)
    values = square_transforms(frames, c["res"], c["crop"], flip=c["flip"])
    named = {
        "test_resized_u8_aa0": values["test_bytes"],
        "train_u8_aa0": values["train_bytes"],
        "test_out_aa0": values["test"],
        "train_out_aa0": values["train"],
    }
    outputs = golden.group("out/")
    # With antialiasing, as later versions of torchvision have it and the released models have not.
    assert_tensors_close(named, {n: x for n, x in outputs.items() if not n.endswith("_aa1")})
