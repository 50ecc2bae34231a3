"""Fields: what each makes of a clip, and that none changes what another one gives."""

import dataclasses
import itertools
import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig, MixtureMember
from internvideo_jax.data.decode.audio import read_audio
from internvideo_jax.data.examples import BrokenClips
from internvideo_jax.data.pipeline import (
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.data.synthetic.scenes import Scene, render, soundtrack, write_video
from internvideo_jax.data.transforms.filterbank import audio_input
from internvideo_jax.data.trial import check_readable
from internvideo_jax.preprocessing import AudioPreprocessing

NUM_CLIPS, FPS = 5, 10
# 0.3 s of 16 kHz.
AUDIO = AudioPreprocessing(num_frames=28, num_mels=8)
SAMPLES = 160 * (AUDIO.num_frames + 2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips of 1 s with sound and two captions; the last one is silent."""
    folder = tmp_path_factory.mktemp("world")
    lines = []
    for number in range(NUM_CLIPS):
        scene = Scene("circle", "red", "left", voice="hum")
        sound = soundtrack(scene, 1.0) if number < NUM_CLIPS - 1 else None
        write_video(folder / f"{number}.mp4", render(scene, 10, 32), FPS, sound)
        captions = [f"clip {number}", f"number {number}"]
        lines.append(json.dumps({"video": f"{number}.mp4", "label": number, "caption": captions}))
    (folder / "clips.jsonl").write_text("\n".join(lines))
    return folder


def make_config(world, **changes):
    return DataConfig(
        **{
            "annotations": str(world / "clips.jsonl"),
            "num_frames": 2,
            "image_size": 16,
            "num_classes": NUM_CLIPS,
            "audio": AUDIO,
            "missing_audio": "zeros",
            **changes,
        }
    )


def take(config, fields, count, **kwargs):
    kwargs = {"batch_size": NUM_CLIPS, "seed": 0, **kwargs}
    batches = train_batches(config, fields, **kwargs)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def rows_of(config, fields, **kwargs):
    """All rows of an evaluation in one batch."""
    count = NUM_CLIPS * config.segments * config.crops
    (batch,) = eval_batches(config, fields, batch_size=count, **kwargs)
    return batch


@pytest.mark.parametrize("name", ["audio", "captions", "image"])
def test_a_further_field_changes_nothing_else(world, name):
    config = make_config(world, augmentation="pretraining")
    plain = take(config, ("video", "label"), 2)
    more = take(config, (name, "video", "label"), 2)
    for batch, other in zip(plain, more, strict=True):
        assert name in other
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_one_caption_is_drawn_and_all_are_judged(world):
    config = make_config(world)
    batches = take(config, ("captions",), 6)
    drawn = {(int(i), c) for b in batches for i, c in zip(b["index"], b["captions"], strict=True)}
    pairs = [(i, text) for i in range(NUM_CLIPS) for text in (f"clip {i}", f"number {i}")]
    assert drawn == set(pairs)
    captions = rows_of(config, ("captions",))["captions"]
    assert list(captions) == [(f"clip {i}", f"number {i}") for i in range(NUM_CLIPS)]


def test_sound_is_cut_at_random_in_training_and_evenly_in_evaluation(world):
    config = make_config(world, segments=2)
    found = rows_of(config, ("audio",))
    waveform = read_audio(world / "0.mp4")
    spare = len(waveform) - SAMPLES + 1
    for segment in range(2):
        start = int(spare * (segment + 0.5) / 2)
        expected = audio_input(waveform[start : start + SAMPLES], AUDIO)
        np.testing.assert_array_equal(found["audio"][segment], expected)
    batches = take(config, ("audio",), 2)
    assert batches[0]["audio"].dtype == np.float32
    first, second = (b["audio"][np.flatnonzero(b["index"] == 0)[0]] for b in batches)
    assert not np.array_equal(first, second)


def test_clips_without_sound_are_zeros_or_errors(world):
    found = rows_of(make_config(world), ("audio", "video"))
    assert found["has_audio"].tolist() == [True] * 4 + [False]
    assert found["valid"].all()
    assert not found["audio"][4].any()
    strict = rows_of(make_config(world, missing_audio="error"), ("audio", "video"))
    assert "has_audio" not in strict
    assert strict["valid"].tolist() == [True] * 4 + [False]
    assert "no audio stream" in strict["error"][4]
    # The pixels of such a row are there all the same.
    assert strict["video"][4].any()


def test_a_short_sound_ends_in_zeros(world):
    config = make_config(world, audio=dataclasses.replace(AUDIO, num_frames=200))
    audio = rows_of(config, ("audio",))["audio"][0]
    assert audio[:95].any(axis=1).all()
    assert not audio[110:].any()


def test_sound_between_two_times_is_that_of_the_clip(world):
    whole, part = read_audio(world / "0.mp4"), read_audio(world / "0.mp4", start=0.25, end=0.75)
    assert len(part) == 8000
    np.testing.assert_array_equal(part, whole[4000:12000])


def test_no_pictures_are_opened_for_sound(world, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("opened")

    monkeypatch.setattr("internvideo_jax.data.sources.source.open_clip", refuse)
    assert rows_of(make_config(world), ("audio", "captions"))["valid"].all()


def test_what_is_known_of_the_frames_comes_with_them(world):
    config = make_config(world, num_classes=None)
    records = list(read_annotations(world / "clips.jsonl"))
    records[1] = ClipRecord("late", records[1].path, start=0.5)
    records[3] = ClipRecord("none", str(world / "none.mp4"))
    found = rows_of(config, ("video",), source=RecordSource(records))
    assert found["frame_indices"].tolist() == [[2, 6], [1, 3], [2, 6], [-1, -1], [2, 6]]
    np.testing.assert_allclose(found["timestamps"][:2], [[0.2, 0.6], [0.6, 0.8]])
    assert np.isnan(found["timestamps"][3]).all()
    assert found["num_frames"].tolist() == [10, 5, 10, 0, 10]
    assert found["damaged_frames"].tolist() == [0] * NUM_CLIPS
    dtypes = {name: found[name].dtype for name in ("frame_indices", "num_frames", "timestamps")}
    assert dtypes == {"frame_indices": "i8", "num_frames": "i8", "timestamps": "f8"}


def test_an_image_is_one_frame(world):
    config = make_config(world)
    image = rows_of(config, ("image",))["image"]
    single = rows_of(dataclasses.replace(config, num_frames=1), ("video",))["video"]
    np.testing.assert_array_equal(image, single)


def test_features_are_those_of_the_clip(world, tmp_path):
    features = np.arange(NUM_CLIPS * 3, dtype=np.float32).reshape(NUM_CLIPS, 3)
    np.save(tmp_path / "teacher.npy", features)
    config = make_config(world, features_dir=str(tmp_path))
    (batch,) = take(config, ("targets/teacher", "video"), 1)
    np.testing.assert_array_equal(batch["targets/teacher"], features[batch["index"]])
    np.save(tmp_path / "teacher.npy", features[1:])
    with pytest.raises(
        ValueError, match=r"teacher\.npy: expected .* 5 clips, found an array of shape \(4, 3\)"
    ):
        take(config, ("targets/teacher",), 1)
    with pytest.raises(ValueError, match="found no such file"):
        take(config, ("targets/other",), 1)
    with pytest.raises(ValueError, match="features_dir"):
        take(make_config(world), ("targets/teacher",), 1)


def test_unknown_fields_are_refused(world):
    with pytest.raises(ValueError, match="found 'vidoe'; did you mean 'video'"):
        take(make_config(world), ("vidoe",), 1)
    with pytest.raises(ValueError, match="num_classes"):
        take(make_config(world, num_classes=None), ("label",), 1)


def test_lists_may_be_of_sound_alone(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((1000 * np.sin(np.arange(16_000))).astype("<i2").tobytes())
    (tmp_path / "clips.jsonl").write_text(json.dumps({"video": "a.wav", "caption": "a tone"}))
    config = make_config(tmp_path, num_classes=None, missing_audio="error")
    fields = ("audio", "captions")
    check_readable(config, fields)
    (batch,) = take(config, fields, 1, batch_size=1)
    assert batch["captions"].tolist() == ["a tone"]
    with pytest.raises(BrokenClips, match=r"a\.wav: expected a video stream"):
        check_readable(config, ("video",))


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "clip", "number", "0", "1", "2", "3", "4")


def write_list(folder, captions):
    """A list of still pictures with these captions, and the words of `WORDS`."""
    write_video(folder / "clip.mp4", render(Scene("circle", "red", "left"), 4, 32), FPS)
    lines = [
        json.dumps({"video": "clip.mp4", "id": str(number), "caption": caption})
        for number, caption in enumerate(captions)
    ]
    (folder / "clips.jsonl").write_text("\n".join(lines))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return make_config(
        folder, num_classes=None, vocabulary=str(folder / "vocab.txt"), max_text_length=5
    )


def test_a_caption_is_drawn_cleaned_cut_and_padded(world, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    config = make_config(world, vocabulary=str(tmp_path / "vocab.txt"), max_text_length=5)
    drawn = {
        tuple(ids)
        for batch in take(config, ("text", "clip_id"), 6)
        for ids in batch["text"].tolist()
    }
    assert drawn == {(2, word, 7 + i, 3, 0) for word in (5, 6) for i in range(NUM_CLIPS)}
    first = rows_of(config, ("text",))["text"]
    assert first.dtype == np.int32
    assert first[:, 1].tolist() == [5] * NUM_CLIPS
    long = write_list(tmp_path, ["Clip, clip; NUMBER-1: clip!"])
    (batch,) = take(long, ("text",), 1, batch_size=1)
    assert batch["text"].tolist() == [[2, 5, 5, 6, 3]]


def test_a_clip_whose_caption_has_no_words_is_replaced(tmp_path, caplog):
    config = write_list(tmp_path, ["...", "clip 1"])
    (batch,) = take(config, ("text",), 1, batch_size=2)
    assert batch["text"].tolist() == [[2, 5, 8, 3, 0]] * 2
    assert sorted(batch["replaced"]) == [False, True]
    assert "expected a caption with words, found '...'" in caplog.text
    with pytest.raises(BrokenClips, match="caption with words"):
        check_readable(write_list(tmp_path, ["!", ""]), ("text",))


def test_entries_of_one_clip_have_one_id(tmp_path):
    config = write_list(tmp_path, ["clip 1", "clip 2"])
    lines = (tmp_path / "clips.jsonl").read_text()
    part = json.dumps({"video": "clip.mp4", "caption": "clip 3", "start": 0.1, "end": 0.3})
    (tmp_path / "clips.jsonl").write_text(f"{lines}\n{part}")
    (batch,) = eval_batches(config, ("clip_id",), batch_size=3)
    same, other, cut = batch["clip_id"]
    assert batch["clip_id"].dtype == np.int32
    assert same == other != cut


def test_captions_of_a_name_are_a_field(tmp_path):
    captions = {"": "clip 1", "sound": ["number 2", "number 3"]}
    config = write_list(tmp_path, [captions, {"sound": "clip 4"}])
    (batch,) = eval_batches(config, ("text", "text/sound"), batch_size=2)
    assert batch["text"].tolist() == [[2, 5, 8, 3, 0], [2, 5, 11, 3, 0]]
    assert batch["text/sound"].tolist() == [[2, 6, 9, 3, 0], [2, 5, 11, 3, 0]]
    (missing,) = eval_batches(config, ("text/speech",), batch_size=2)
    assert not missing["valid"].any()
    assert "caption called 'speech', found 3 ('', 'sound')" in missing["error"][0]


def test_texts_need_a_vocabulary(world):
    with pytest.raises(ValueError, match="vocabulary: expected the file"):
        take(make_config(world), ("text",), 1)


def write_sound(path, samples, rate):
    """16-bit samples `[S, channels]`."""
    with wave.open(str(path), "wb") as file:
        file.setparams((samples.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def test_any_rate_and_channels_sound_alike(tmp_path):
    config = write_list(tmp_path, [])
    lines = []
    for rate in (8_000, 16_000, 44_100, 96_000):
        for channels in (1, 2):
            tone = 8000 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
            name = f"{rate}_{channels}.wav"
            write_sound(tmp_path / name, np.repeat(tone[:, None], channels, axis=1), rate)
            lines.append(json.dumps({"audio": name}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    (batch,) = eval_batches(config, ("audio",), batch_size=len(lines))
    assert batch["valid"].all()
    first, *others = batch["audio"]
    # The tone's mel bin, at which resampling changes next to nothing.
    loudest = first.mean(0).argmax()
    for other in others:
        np.testing.assert_allclose(other[:, loudest], first[:, loudest], atol=0.02)


def test_silence_and_a_single_sample_are_sounds(tmp_path):
    config = write_list(tmp_path, [])
    write_sound(tmp_path / "silent.wav", np.zeros((8000, 1)), 16_000)
    write_sound(tmp_path / "single.wav", np.full((1, 1), 1000), 16_000)
    names = ("silent.wav", "single.wav")
    lines = [json.dumps({"audio": name}) for name in names]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    (batch,) = eval_batches(config, ("audio",), batch_size=2)
    silent, single = batch["audio"]
    assert batch["valid"].all()
    assert np.isfinite(silent).all()
    assert (silent < 0).all()
    # Less than one frame: the mean level throughout.
    assert not single.any()


# Two media by batch.


@pytest.fixture
def mixture(world, tmp_path):
    """Two lists of videos, and one whose clips are images: two batches of video for one."""
    lines = (world / "clips.jsonl").read_text().splitlines()
    for name, some in (("a", lines[:2]), ("b", lines[2:]), ("c", lines[:3])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some))

    def member(name, **more):
        return MixtureMember(annotations=str(tmp_path / f"{name}.jsonl"), root=str(world), **more)

    images = {"media": "image", "batch_size": 8, "num_frames": 1, "image_size": 8}
    return make_config(
        world,
        annotations=None,
        mixture=(member("a"), member("b"), member("c", **images)),
        mixture_by="batch",
        augmentation="pretraining",
    )


FIELDS = {"video": ("video", "captions"), "image": ("video", "label")}


def test_a_batch_has_one_kind_of_media_and_its_shapes(mixture):
    batches = take(mixture, FIELDS, 9, batch_size=4)
    media = [str(batch["media"][0]) for batch in batches]
    assert media.count("video") == 6
    assert media.count("image") == 3
    for batch, name in zip(batches, media, strict=True):
        assert set(batch["media"]) == {name}
        is_image = name == "image"
        assert batch["video"].shape == ((8, 1, 8, 8, 3) if is_image else (4, 2, 16, 16, 3))
        assert ("label" in batch, "captions" in batch) == (is_image, not is_image)
        assert (batch["index"] >= NUM_CLIPS).all() == is_image
    # Every pass over the images shows each of them once.
    index = np.concatenate(
        [b["index"] for b, m in zip(batches, media, strict=True) if m == "image"]
    )
    assert np.array_equal(np.bincount(index)[NUM_CLIPS:], [8, 8, 8])


def test_any_number_of_processes_goes_on_at_any_batch(mixture):
    whole = take(mixture, FIELDS, 6, batch_size=4)
    for start, count in ((1, 1), (2, 4), (3, 2), (4, 4)):
        place = {"batch_size": 4, "start": 4 * start, "process_count": count}
        shares = [take(mixture, FIELDS, 2, process_index=p, **place) for p in range(count)]
        for number, parts in enumerate(zip(*shares, strict=True)):
            expected = whole[start + number]
            for name in expected:
                found = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(found, expected[name], name)


def test_batches_of_several_media_begin_at_whole_ones(mixture):
    with pytest.raises(ValueError, match="start at a whole batch of 4"):
        take(mixture, FIELDS, 1, batch_size=4, start=2)
    with pytest.raises(ValueError, match="fields of media 'image', found none"):
        take(mixture, {"video": ("video",)}, 1, batch_size=4)


def test_an_epoch_has_the_batches_of_all_media(mixture):
    assert steps_per_epoch(mixture, 2) == 5 // 2 + 1


def test_every_kind_must_have_a_readable_clip(mixture):
    check_readable(mixture, FIELDS)
    silent = dataclasses.replace(mixture, missing_audio="error")
    *videos, images = silent.mixture
    Path(images.annotations).write_text(json.dumps({"video": "4.mp4", "label": 1}))
    with pytest.raises(BrokenClips, match="no audio stream"):
        check_readable(silent, {"video": ("video",), "image": ("audio",)})
    check_readable(dataclasses.replace(silent, mixture=tuple(videos)), {"video": ("audio",)})


def test_members_that_share_batches_are_alike(mixture):
    with pytest.raises(ValueError, match="mixture_by"):
        dataclasses.replace(mixture, mixture_by="example")
    first, *rest = mixture.mixture
    with pytest.raises(ValueError, match="for each kind of media"):
        dataclasses.replace(mixture, mixture=(dataclasses.replace(first, image_size=8), *rest))


def test_decoding_needs_no_jax():
    """Worker processes import all of this; of JAX only as much as grain itself does."""
    code = """if True:
        import importlib, pkgutil, sys, grain
        before = set(sys.modules)
        from internvideo_jax import data
        for module in pkgutil.walk_packages(data.__path__, "internvideo_jax.data."):
            importlib.import_module(module.name)
        wrong = {"jax", "jaxlib", "flax", "internvideo_jax.models", "internvideo_jax.nn"}
        print(sorted(n for n in set(sys.modules) - before
                     if n.split(".")[0] in wrong or ".".join(n.split(".")[:2]) in wrong))
        print("flax" in sys.modules)
    """
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert output.stdout.decode().split() == ["[]", "False"]
