"""Batches: the same bytes however they are made, and nothing but what the config asks for."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from internvideo_jax.config import from_dict
from internvideo_jax.data import examples, pipeline, watchdog
from internvideo_jax.data.config import DataConfig, MixtureMember
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.decode.video import VideoError
from internvideo_jax.data.examples import BrokenClips
from internvideo_jax.data.pipeline import train_batches
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.data.transforms.frames import (
    eval_frame,
    long_side_crops,
    resize_short_side,
)
from internvideo_jax.data.transforms.sampling import sample_indices
from internvideo_jax.preprocessing import AudioPreprocessing

NUM_CLIPS = 7
SIZE = 16


def shade(clip):
    """The grey that marks a clip; codecs keep it to a few levels."""
    return 20 + 30 * clip


@pytest.fixture(scope="module")
def world(tmp_path_factory, render):
    """Annotations of `NUM_CLIPS` clips of 12 frames; the last frames are brighter on the left."""
    folder = tmp_path_factory.mktemp("world")
    lines = []
    for clip in range(NUM_CLIPS):

        def picture(number, clip=clip):
            image = np.full((24, 32, 3), shade(clip), np.uint8)
            image[:, :8] += np.uint8(2 * number)
            return image

        render(folder / f"{clip}.mp4", num_frames=12, options={"qp": "0"}, picture=picture)
        lines.append(json.dumps({"video": f"{clip}.mp4", "label": clip % 3}))
    (folder / "clips.jsonl").write_text("\n".join(lines))
    return folder


def make_config(world, **changes):
    return DataConfig(
        **{
            "annotations": str(world / "clips.jsonl"),
            "num_frames": 4,
            "image_size": SIZE,
            "num_classes": 3,
            **changes,
        }
    )


def fields_of(config):
    return ("video",) if config.num_classes is None else ("video", "label")


def eval_batches(config, fields=None, **kwargs):
    return pipeline.eval_batches(config, fields or fields_of(config), **kwargs)


def take(config, count, fields=None, **kwargs):
    """The first batches, with the iterator closed."""
    kwargs = {"batch_size": 4, "seed": 0, **kwargs}
    batches = train_batches(config, fields or fields_of(config), **kwargs)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype, name
            np.testing.assert_array_equal(batch[name], other[name], name)


def test_a_batch_has_the_promised_arrays(world):
    (batch,) = take(make_config(world), 1)
    shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert shapes == {
        "video": ((4, 4, SIZE, SIZE, 3), np.uint8),
        "label": ((4,), np.int32),
        "index": ((4,), np.int64),
        "replaced": ((4,), np.bool_),
    }
    for video, index, label in zip(batch["video"], batch["index"], batch["label"], strict=True):
        assert abs(int(video[0, 0, -1, 0]) - shade(index)) <= 3
        assert label == index % 3
    assert not batch["replaced"].any()


def test_every_epoch_has_every_clip_once_in_another_order(world):
    found = np.concatenate([batch["index"] for batch in take(make_config(world), 7, batch_size=3)])
    epochs = found.reshape(3, NUM_CLIPS)
    assert np.array_equal(np.sort(epochs), [np.arange(NUM_CLIPS)] * 3)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_and_draws_depend_on_the_seed(world):
    config = make_config(world, augmentation="pretraining")
    (first,), (same,), (other,) = (take(config, 1, seed=seed) for seed in (1, 1, 2))
    assert_equal([first], [same])
    assert not np.array_equal(first["video"], other["video"])


@pytest.mark.parametrize("augmentation", ["none", "pretraining", "finetuning"])
def test_a_later_start_gives_the_same_bytes(world, augmentation):
    config = make_config(world, augmentation=augmentation)
    through = take(config, 5)
    assert_equal(take(config, 2, start=3 * 4), through[3:])
    assert through[0]["video"].dtype == (np.float32 if augmentation == "finetuning" else np.uint8)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_one(world, count):
    config = make_config(world, augmentation="pretraining", num_sample=2)
    shares = [take(config, 3, process_index=p, process_count=count) for p in range(count)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(joined, take(config, 3))


def test_another_batch_size_goes_on_where_a_run_stopped(world):
    config = make_config(world, augmentation="pretraining")
    (large,) = take(config, 1, batch_size=6, start=4)
    small = take(config, 3, batch_size=2, start=4)
    assert np.array_equal(np.concatenate([batch["video"] for batch in small]), large["video"])


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(world):
    config = make_config(world, augmentation="finetuning", num_sample=2)
    for workers in (1, 3):
        assert_equal(take(dataclasses.replace(config, workers=workers), 4), take(config, 4))


def test_copies_of_a_clip_are_neighbours_with_draws_of_their_own(world):
    (batch,) = take(make_config(world, augmentation="pretraining", num_sample=3), 1)
    assert batch["video"].shape == (12, 4, SIZE, SIZE, 3)
    groups = batch["index"].reshape(4, 3)
    assert (groups == groups[:, :1]).all()
    videos = batch["video"].reshape(4, 3, -1)
    assert all(len(np.unique(copies, axis=0)) > 1 for copies in videos)


def test_clips_of_ssv2_are_never_mirrored(tmp_path, world):
    """The left of these clips is the bright side."""
    lines = [f"{'ssv2' if clip > 2 else 'k400'} {clip}.mp4 1.2 -1 -1 0" for clip in range(6)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    config = make_config(
        world,
        annotations=str(tmp_path / "train.txt"),
        root=str(world),
        format="pretrain",
        num_classes=None,
        sampling="pretraining",
        augmentation="pretraining",
    )
    batches = take(config, 6, batch_size=6)
    columns = np.concatenate([batch["video"][:, -1].mean((1, 3)) for batch in batches])
    mirrored = columns[:, -1] > columns[:, 0] + 1
    is_ssv2 = np.concatenate([batch["index"] for batch in batches]) > 2
    assert not mirrored[is_ssv2].any()
    assert mirrored[~is_ssv2].any()


@pytest.fixture
def broken_world(tmp_path, world):
    """Clips 2 and 3 cannot be read."""
    for file in world.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "2.mp4").write_bytes(b"nothing of a video")
    (tmp_path / "3.mp4").unlink()
    return tmp_path


def test_a_broken_clip_is_replaced_by_the_next_one(broken_world, world):
    whole = take(make_config(world), 2, batch_size=7)
    batches = train_batches(make_config(broken_world), ("video", "label"), batch_size=7, seed=0)
    found = list(itertools.islice(batches, 2))
    batches.close()
    for batch, expected in zip(found, whole, strict=True):
        wanted = expected["index"]
        assert np.array_equal(batch["replaced"], np.isin(wanted, [2, 3]))
        assert np.array_equal(batch["index"], np.where(batch["replaced"], 4, wanted))
        assert np.array_equal(batch["label"], batch["index"] % 3)
        kept = ~batch["replaced"]
        assert np.array_equal(batch["video"][kept], expected["video"][kept])
    assert batches.broken.keys() == {"2.mp4", "3.mp4"}
    assert "No such file" in batches.broken["3.mp4"]
    assert_equal(take(make_config(broken_world), 1, batch_size=7, start=7), found[1:])


def test_the_last_clip_is_replaced_by_the_first(broken_world):
    (broken_world / "6.mp4").unlink()
    (batch,) = take(make_config(broken_world), 1, batch_size=7)
    assert sorted(batch["index"]) == [0, 0, 1, 4, 4, 4, 5]


def test_a_folder_of_broken_clips_is_an_error(broken_world):
    for clip in range(NUM_CLIPS):
        (broken_world / f"{clip}.mp4").unlink(missing_ok=True)
    with pytest.raises(BrokenClips, match=r"found 7 in a row(?s:.*)0\.mp4: .*No such"):
        take(make_config(broken_world), 1)


def test_a_mixture_follows_its_weights(tmp_path, world):
    lines = (world / "clips.jsonl").read_text().splitlines()
    for name, some in (("few", lines[:2]), ("many", lines[2:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some))
    mixture = tuple(
        MixtureMember(annotations=str(tmp_path / f"{name}.jsonl"), root=str(world), weight=weight)
        for name, weight in (("few", 3), ("many", 1))
    )
    config = make_config(world, annotations=None, mixture=mixture)
    batches = take(config, 10)
    found = np.concatenate([batch["index"] for batch in batches])
    assert np.array_equal(np.bincount(found), [15, 15, 2, 2, 2, 2, 2])
    assert_equal(take(config, 3, start=28), batches[7:])
    shades = np.concatenate([batch["video"][:, 0, 0, -1, 0] for batch in batches]).astype(int)
    assert np.abs(shades - shade(found)).max() <= 3


def test_multi_label_clips_are_multi_hot(tmp_path, world):
    labels = [[0, 2], [1], []]
    lines = [json.dumps({"video": f"{i}.mp4", "label": labels[i]}) for i in range(3)]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    config = make_config(
        world, annotations=str(tmp_path / "clips.jsonl"), root=str(world), multi_label=True
    )
    (batch,) = take(config, 1, batch_size=3)
    assert batch["label"].dtype == np.float32
    expected = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    assert np.array_equal(batch["label"], expected[batch["index"]])
    with pytest.raises(ValueError, match=r"0\.mp4: expected one label, found \(0, 2\); set multi"):
        take(dataclasses.replace(config, multi_label=False), 1)


@pytest.mark.parametrize("sampling", ["sparse", "dense", "tsn"])
def test_evaluation_shows_the_validation_view(world, sampling):
    config = make_config(world, sampling=sampling, sampling_rate=2)
    batches = list(eval_batches(config, batch_size=3))
    assert [len(batch["video"]) for batch in batches] == [3, 3, 1]
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert np.array_equal(rows["index"], [0, 1, 2, 3, 4, 5, 6])
    assert rows["valid"].all()
    assert np.array_equal(rows["label"], [0, 1, 2, 0, 1, 2, 0])
    assert (rows["error"] == "").all()
    indices = sample_indices(sampling, 12, 4, rate=2)
    record = examples.Clips(config)[5].record
    with open_clip(record) as clip:
        view = clip.read(indices, transform=lambda frame: eval_frame(frame, SIZE))
    assert np.array_equal(rows["video"][5], view)


def test_evaluation_shows_every_view_once_over_all_processes(world):
    config = make_config(world, segments=2, crops=3)
    single = list(eval_batches(config, batch_size=8))
    shares = [
        list(eval_batches(config, batch_size=8, process_index=p, process_count=2)) for p in (0, 1)
    ]
    assert len(shares[0]) == len(shares[1])

    def by_view(batches):
        rows = {}
        for batch in batches:
            for i in np.flatnonzero(batch["valid"]):
                view = tuple(int(batch[name][i]) for name in ("index", "segment", "crop"))
                assert view not in rows
                rows[view] = batch["video"][i]
        return rows

    expected, found = by_view(single), by_view(shares[0] + shares[1])
    assert expected.keys() == set(itertools.product(range(NUM_CLIPS), range(2), range(3)))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[view], expected[view]) for view in expected)
    with open_clip(examples.Clips(config)[4].record) as clip:
        for segment in range(2):
            indices = sample_indices("sparse", 12, 4, view=(segment, 2))
            frames = clip.read(indices, transform=lambda frame: resize_short_side(frame, SIZE))
            crops = long_side_crops(frames, 3)
            for crop in range(3):
                assert np.array_equal(expected[4, segment, crop], crops[crop])


def test_processes_without_a_clip_get_padding(tmp_path, world):
    (tmp_path / "one.csv").write_text("3.mp4,2\n")
    config = make_config(world, annotations=str(tmp_path / "one.csv"), root=str(world))
    shares = [
        list(eval_batches(config, batch_size=4, process_index=p, process_count=4)) for p in range(4)
    ]
    found = [[batch["index"].tolist() for batch in share] for share in shares]
    assert found == [[[0]], [[-1]], [[-1]], [[-1]]]
    assert shares[0][0]["label"] == 2


def test_evaluation_never_replaces_a_clip(broken_world):
    (batch,) = eval_batches(make_config(broken_world), batch_size=8)
    assert np.array_equal(batch["index"], [0, 1, 2, 3, 4, 5, 6])
    assert np.array_equal(batch["valid"], [True, True, False, False, True, True, True])
    assert "No such file" in batch["error"][3]
    assert not batch["video"][2].any()


def test_the_cache_changes_nothing(tmp_path, broken_world, monkeypatch):
    config = make_config(broken_world, augmentation="pretraining")
    cached = dataclasses.replace(config, cache_dir=str(tmp_path / "cache"))
    assert pipeline.fingerprint(cached)["number"] == NUM_CLIPS
    assert not (tmp_path / "cache").exists()
    assert_equal(take(cached, 4), take(config, 4))

    def refuse(*args, **kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr("internvideo_jax.data.sources.source.open_clip", refuse)
    take(cached, 1)
    monkeypatch.undo()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (broken_world / "3.mp4").write_bytes((broken_world / "4.mp4").read_bytes())
    batches = take(cached, 4)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert 3 in np.concatenate([batch["index"] for batch in batches])


def test_unaugmented_clips_are_cached_as_small_as_they_are_needed(tmp_path, world):
    config = make_config(world, sampling="uniform", segments=2, crops=2)
    cached = dataclasses.replace(config, cache_dir=str(tmp_path))
    assert_equal(take(cached, 3), take(config, 3))
    (folder,) = tmp_path.iterdir()
    height, width = SIZE, round(SIZE * 32 / 24)
    assert (folder / "frames.bin").stat().st_size == NUM_CLIPS * 12 * height * width * 3
    for batch, other in zip(
        eval_batches(cached, batch_size=6), eval_batches(config, batch_size=6), strict=True
    ):
        assert np.array_equal(batch["video"], other["video"])
    assert list(tmp_path.iterdir()) == [folder]


def test_squares_are_cached_apart_from_other_frames_of_their_size(tmp_path, world):
    short_side = make_config(world, sampling="uniform", cache_dir=str(tmp_path))
    squares = dataclasses.replace(short_side, resize="bicubic_square")
    without = dataclasses.replace(squares, cache_dir=None)
    take(short_side, 1)
    assert_equal(take(squares, 3), take(without, 3))
    sizes = sorted((folder / "frames.bin").stat().st_size for folder in tmp_path.iterdir())
    assert sizes[0] == NUM_CLIPS * 12 * SIZE**2 * 3 < sizes[1]


def test_the_cache_holds_sound_where_it_is_used(tmp_path, monkeypatch):
    scene = scenes.Scene("ring", "red", "up", voice="buzz")
    for clip in range(3):
        sound = scenes.soundtrack(scene, 8 / 25) if clip < 2 else None
        scenes.write_video(tmp_path / f"{clip}.mp4", scenes.render(scene, 8, 32), 25, sound)
    lines = [json.dumps({"video": f"{clip}.mp4"}) for clip in range(3)]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    config = make_config(
        tmp_path, num_classes=None, audio=AudioPreprocessing(num_frames=20), missing_audio="zeros"
    )
    cached = dataclasses.replace(config, cache_dir=str(tmp_path / "cache"))

    def batch(config, fields=("video", "audio")):
        (found,) = pipeline.eval_batches(config, fields, batch_size=3)
        return found

    plain, made = batch(config), batch(cached)

    def refuse(*args, **kwargs):
        raise AssertionError("decoded again")

    for name in ("clip_sound", "open_clip"):
        monkeypatch.setattr(f"internvideo_jax.data.sources.source.{name}", refuse)
    kept, required = batch(cached), batch(dataclasses.replace(cached, missing_audio="error"))
    assert plain["has_audio"].tolist() == [True, True, False]
    assert plain["audio"][0].any()
    for name in ("video", "audio", "has_audio", "valid"):
        np.testing.assert_array_equal(made[name], plain[name])
        np.testing.assert_array_equal(kept[name], plain[name])
    assert required["valid"].tolist() == [True, True, False]
    assert "expected an audio stream" in required["error"][2]
    monkeypatch.undo()
    # Those who want the frames alone do not wait for sound.
    monkeypatch.setattr("internvideo_jax.data.sources.source.clip_sound", refuse)
    np.testing.assert_array_equal(batch(cached, ("video",))["video"], plain["video"])
    monkeypatch.undo()
    # Sound that was decoded in another way is not used.
    folders = set((tmp_path / "cache").iterdir())
    version = "internvideo_jax.data.sources.frame_cache._SOUND_VERSION"
    monkeypatch.setattr(version, 1)
    np.testing.assert_array_equal(batch(cached)["audio"], plain["audio"])
    assert len(set((tmp_path / "cache").iterdir()) - folders) == 1


def test_clips_too_large_for_a_cache_are_refused(tmp_path, world, monkeypatch):
    monkeypatch.setattr(
        "internvideo_jax.data.sources.frame_cache.MAX_CLIP_BYTES", 12 * 24 * 32 * 3 - 1
    )
    cache = str(tmp_path / "cache")
    config = make_config(world, cache_dir=cache, augmentation="pretraining")
    with pytest.raises(ValueError, match=r"0\.mp4: .* found 12 frames of 32x24; unset cache_dir"):
        take(config, 1)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("kind", "batches", "hangs_at", "restart"),
    [
        (examples.TrainExamples, lambda config: take(config, 4), 9, 2),
        (examples.EvalExamples, lambda config: list(eval_batches(config, batch_size=5)), 3, 3),
    ],
)
def test_a_hanging_loader_starts_anew_at_its_place(
    world, monkeypatch, caplog, kind, batches, hangs_at, restart
):
    config = make_config(world, augmentation="pretraining", segments=2, crops=3)
    expected = batches(config)
    original = kind.__call__
    stuck, freed = [], threading.Event()

    def hang_once(self, number):
        if number == hangs_at and not stuck:
            stuck.append(number)
            freed.wait(20)
        return original(self, number)

    monkeypatch.setattr(kind, "__call__", hang_once)
    found = batches(dataclasses.replace(config, stall_timeout=1.5))
    freed.set()
    assert stuck == [hangs_at]
    assert_equal(found, expected)
    assert f"starts anew at batch {restart}" in caplog.text


def test_a_loader_that_keeps_hanging_is_an_error():
    freed = threading.Event()
    starts = []

    def make(start):
        starts.append(start)
        yield from range(start, 2)
        freed.wait(20)

    items = watchdog.BackgroundIterator(make, timeout=0.5)
    assert list(itertools.islice(items, 2)) == [0, 1]
    with pytest.raises(watchdog.StalledLoader, match="expected batch 2 .* in 4 attempts"):
        next(items)
    freed.set()
    assert starts == [0, 2, 2, 2]
    with pytest.raises(StopIteration):
        next(items)


def test_a_loader_that_keeps_losing_processes_is_an_error(caplog):
    starts = []

    def make(start):
        starts.append(start)
        yield from range(start, 2)
        raise watchdog.LostWorker("a loading process died (SIGKILL)")

    items = watchdog.BackgroundIterator(make, timeout=5)
    assert list(itertools.islice(items, 2)) == [0, 1]
    with pytest.raises(watchdog.LostWorker, match=r"batch 2 .* 4 attempts .*SIGKILL.* workers"):
        next(items)
    assert starts == [0, 2, 2, 2]
    assert "a loading process died (SIGKILL): loading starts anew at batch 2" in caplog.text


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_at_its_place(world, caplog):
    config = make_config(world, augmentation="pretraining")
    batches = train_batches(
        dataclasses.replace(config, workers=1), ("video", "label"), batch_size=4, seed=0
    )

    def kill():
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(workers[0].pid, signal.SIGKILL)

    # While it starts, and while it works.
    threading.Thread(target=kill).start()
    found = list(itertools.islice(batches, 3))
    kill()
    # More than can have been ready.
    found += itertools.islice(batches, 25)
    batches.close()
    assert_equal(found, take(config, 28))
    deaths = [message for message in caplog.messages if "loading process died" in message]
    assert len(deaths) == 2
    assert all("(1 of 3 times)" in message for message in deaths)
    assert "SIGKILL" in deaths[1]
    assert not multiprocessing.active_children()


def test_errors_of_the_loader_reach_the_loop():
    def make(start):
        yield start
        raise VideoError("clip.mp4", "this", "that", "do so")

    items = watchdog.BackgroundIterator(make, timeout=5)
    assert next(items) == 0
    with pytest.raises(VideoError, match="expected this, found that"):
        next(items)


def test_closing_ends_the_thread_and_the_iterator():
    closed = threading.Event()

    def make(start):
        try:
            yield from itertools.count(start)
        finally:
            closed.set()

    items = watchdog.BackgroundIterator(make, timeout=5)
    assert list(itertools.islice(items, 5)) == list(range(5))
    items.close()
    assert closed.is_set()
    assert not any(t.name == "data-loader" for t in threading.enumerate())


def test_an_epoch_is_whole_batches_and_at_least_one(world):
    config = make_config(world)
    assert [pipeline.steps_per_epoch(config, size) for size in (1, 2, 7, 8)] == [7, 3, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": None}, "set one, e.g. --config.data.annotations=FILE"),
        ({"shards": "folder"}, "found annotations and shards"),
        ({"mixture": [{"annotations": "x.csv"}]}, "found both"),
        ({"mixture": [{}], "annotations": None}, r"data\.mixture\[0\]\.annotations"),
        ({"mixture": [{"annotations": "x", "weight": 0}]}, "expected a weight above 0"),
        ({"num_frames": 0}, "num_frames: expected at least 1"),
        ({"workers": -1}, "workers: expected 0"),
        ({"segments": 0}, "segments: expected at least 1"),
        ({"rand_augment": "rand-x"}, "RandAugment policy"),
        ({"erase_probability": 1.5}, "between 0 and 1, found 1.5"),
        ({"stall_timeout": 0.0}, "stall_timeout: expected seconds"),
        ({"multi_label": True, "num_classes": None}, "expected num_classes"),
        ({"sampling": "sparce"}, "did you mean 'sparse'"),
    ],
)
def test_configs_that_cannot_be_are_refused(world, changes, message):
    fields = {"annotations": str(world / "clips.jsonl"), "num_classes": 3, **changes}
    with pytest.raises(ValueError, match=message):
        train_batches(from_dict(DataConfig, fields), ("video",), batch_size=4, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5, "process_count": 2}, "divides by 2 processes, found 5"),
        ({"process_index": 2, "process_count": 2}, "a process index below 2"),
        ({"seed": -1}, "a seed and a start of at least 0"),
    ],
)
def test_impossible_shares_are_refused(world, arguments, message):
    with pytest.raises(ValueError, match=message):
        take(make_config(world), 1, **arguments)
