import collections
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.annotations.retrieval import read_retrieval
from internvideo_jax.data.decode.audio import read_audio
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.data.synthetic import world
from internvideo_jax.data.synthetic.world import Content, WorldConfig, draw_contents, make_world

TINY = WorldConfig(train=5, probe=3, test=4, image_size=32, num_frames=8, crossed=1, voices=2)
NUM_CLIPS = {"train": 5, "probe": 3, "test": 4, "crossed": 8, "voices": 6}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_world(TINY, tmp_path_factory.mktemp("worlds"))


def contents():
    return [
        Content(*parts)
        for parts in itertools.product(
            synthetic.COLORS, world.SHAPES, world.SIZES, world.MOTIONS, world.BACKGROUNDS, ["hum"]
        )
    ]


def test_a_part_of_the_contents_is_held_out():
    held_out = [content for content in contents() if content.is_held_out]
    assert len(contents()) == 1152
    assert len(held_out) == 312
    assert {content.look for content in contents()} == set(range(world.NUM_LOOKS))
    # Whatever is held out is made of parts that are seen.
    seen = [content for content in contents() if not content.is_held_out]
    for field in ("color", "shape", "size", "motion", "background"):
        assert {getattr(c, field) for c in seen} == {getattr(c, field) for c in contents()}


def test_splits_are_what_they_are_for():
    config = WorldConfig(train=1680, probe=300, test=400)
    train, probe, test = (draw_contents(config, split) for split in ("train", "probe", "test"))
    assert (len(train), len(probe), len(test)) == (1680, 300, 400)
    assert not any(content.is_held_out for content in train + probe)
    assert sum(content.is_held_out for content in test) == 200

    def visible(content):
        return dataclasses.replace(content, voice="hum")

    assert set(collections.Counter(map(visible, train)).values()) == {2}
    assert max(collections.Counter(map(visible, test)).values()) == 1
    assert {content.voice for content in train} == {"hum", "buzz", "beep"}
    assert draw_contents(config, "train") == train
    assert draw_contents(dataclasses.replace(config, seed=1), "train") != train


def test_splits_that_came_later_change_nothing_of_the_others():
    """What the demo's published figures were measured on."""
    first = {split: draw_contents(WorldConfig(), split)[0] for split in ("train", "probe", "test")}
    assert list(map(dataclasses.astuple, first.values())) == [
        ("red", "cross", "small", "left", "gradient", "hum"),
        ("red", "cross", "large", "anticlockwise", "gradient", "buzz"),
        ("magenta", "cross", "small", "left", "gradient", "buzz"),
    ]


def test_crossed_clips_have_all_motions_of_every_look():
    crossed = draw_contents(WorldConfig(crossed=25), "crossed")
    pairs = {(content.look, content.motion) for content in crossed}
    looks = {look for look, _ in pairs}
    assert len(crossed) == len(pairs) == 200
    assert pairs == set(itertools.product(looks, world.MOTIONS))
    assert any(content.is_held_out for content in crossed)


def test_voices_are_the_only_difference_of_three_clips(tiny):
    records = read_annotations(tiny.annotations("voices"))
    contents = tiny.contents("voices")
    assert len({dataclasses.replace(content, voice="hum") for content in contents}) == 2
    for first in range(0, len(records), 3):
        group = range(first, first + 3)
        assert [contents[n].voice for n in group] == list(world.VOICES)
        said = {records[n].captions[0].replace(contents[n].voice, "VOICE") for n in group}
        assert len(said) == 1
        seen = []
        for number in group:
            with open_clip(records[number]) as clip:
                seen.append(clip.read(range(clip.num_frames)))
        assert all(np.array_equal(frames, seen[0]) for frames in seen)
        heard = [read_audio(records[number].path) for number in group]
        assert not np.allclose(heard[0], heard[1], atol=0.01)


def test_retrieval_lists_are_halves_of_the_test_clips(tiny):
    contents = tiny.contents("test")
    halves = [read_retrieval(tiny.retrieval_list(f"test_{half}")).records for half in (1, 2)]
    numbers = [[int(Path(record.path).stem) for record in half] for half in halves]
    assert sorted(numbers[0] + numbers[1]) == [0, 1, 2, 3]
    for half in numbers:
        assert sorted(contents[n].is_held_out for n in half) == [False, True]


def test_sounds_have_the_captions_of_all_that_sound_alike(tmp_path):
    found = make_world(dataclasses.replace(TINY, test=68, num_frames=2), tmp_path)
    contents = {f"test/{n:05d}.mp4": c for n, c in enumerate(found.contents("test"))}
    clips = read_retrieval(found.retrieval_list("sounds")).records
    own = {r.id: r.captions[0] for r in read_retrieval(found.retrieval_list("test_1")).records}
    assert len(clips) == 34
    for clip in clips:
        alike = [c for c in clips if contents[c.id].audible == contents[clip.id].audible]
        assert set(clip.captions) == {own[c.id] for c in alike}
    assert max(len(clip.captions) for clip in clips) > 1


def test_captions_tell_contents_apart():
    rng = np.random.default_rng(0)
    said = collections.defaultdict(set)
    for content in contents():
        for _ in range(3):
            said[content.caption(rng)].add(content)
    assert all(len(meant) == 1 for meant in said.values())
    assert len(said) > len(contents())


def test_the_middle_of_a_clip_says_nothing_of_the_motion():
    places = {}
    for motion in world.MOTIONS:
        content = Content("red", "circle", "large", motion, "plain", "hum")
        rngs = (np.random.default_rng(seed) for seed in range(200))
        poses = [synthetic._poses(content.scene(rng), 3) for rng in rngs]
        places[motion] = np.array([[axis[1] for axis in pose] for pose in poses])
    for found in places.values():
        np.testing.assert_allclose(found, places["left"], atol=1e-9)


def test_files_hold_the_contents(tiny):
    for split, count in NUM_CLIPS.items():
        assert TINY.num_clips(split) == count
        records = read_annotations(tiny.annotations(split), check_files=True, num_classes=8)
        looks = read_annotations(tiny.look_annotations(split), num_classes=world.NUM_LOOKS)
        rows = zip(records, looks, tiny.contents(split), strict=True)
        for record, look, content in rows:
            assert world.MOTIONS[record.label] == content.motion
            assert look.label == content.look
            assert content.shape in record.captions[0]
            assert content.voice in record.captions[0]
        assert len(records) == count
    with open_clip(records[0]) as clip:
        assert clip.read(range(clip.num_frames)).shape == (8, 32, 32, 3)
        assert clip.fps == 25
    assert len(read_audio(records[0].path)) == pytest.approx(8 / 25 * 16_000, abs=1024)


def test_the_same_config_gives_the_same_bytes(tiny, tmp_path):
    again = make_world(TINY, tmp_path)
    files = sorted(path.relative_to(tiny.directory) for path in tiny.directory.rglob("*.*"))
    # Three lists of each split, three more for retrieval, and the description.
    assert len(files) == sum(NUM_CLIPS.values()) + 15 + 3 + 1
    for file in files:
        assert (tiny.directory / file).read_bytes() == (again.directory / file).read_bytes()


def test_an_interrupted_world_is_completed(tiny, tmp_path):
    made = make_world(TINY, tmp_path)
    expected = (made.directory / "test/00002.mp4").read_bytes()
    (made.directory / "world.json").unlink()
    (made.directory / "test/00002.mp4").unlink()
    kept = (made.directory / "test/00001.mp4").stat()
    reported = []
    make_world(TINY, tmp_path, report=reported.append)
    assert (made.directory / "test/00002.mp4").read_bytes() == expected
    assert (made.directory / "test/00001.mp4").stat().st_mtime_ns == kept.st_mtime_ns
    assert sum(reported) == sum(NUM_CLIPS.values())


def test_a_complete_world_is_left_alone(tiny):
    times = {path: path.stat().st_mtime_ns for path in tiny.directory.rglob("*")}
    assert make_world(TINY, tiny.directory.parent) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.directory.rglob("*")} == times
    assert json.loads((tiny.directory / "world.json").read_text())["train"] == 5


@pytest.mark.slow
def test_processes_write_the_same_bytes(tmp_path):
    config = dataclasses.replace(TINY, train=100)
    one = make_world(config, tmp_path / "one", processes=1)
    two = make_world(config, tmp_path / "two", processes=2)
    for path in one.directory.rglob("*.mp4"):
        other = two.directory / path.relative_to(one.directory)
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        *(({name: count}, "up to 624") for name, count in (("test", 3), ("test", 1000))),
        ({"train": 0}, "at least one clip"),
        *(({"crossed": count}, "1 to 48 crossed looks") for count in (0, 49)),
        *(({"voices": count}, "1 to 1152 contents") for count in (0, 1153)),
    ],
)
def test_impossible_sizes_are_refused(fields, expected):
    with pytest.raises(ValueError, match=expected):
        WorldConfig(**fields)
