"""Shards hold what was written, and say so when they do not."""

import errno
import json
import os
import resource
import wave

import numpy as np
import pytest
from PIL import Image

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.audio import clip_sound
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.decode.video import VideoError
from internvideo_jax.data.sources import shard_writer, shards
from internvideo_jax.data.sources.shard_writer import write_shards
from internvideo_jax.data.sources.shards import ShardError, ShardSource
from internvideo_jax.files import DiskFullError


@pytest.fixture(scope="module")
def records(tmp_path_factory, render):
    """Four videos, one cut out of a longer one, and a folder of images."""
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for i in range(4):
        path = render(folder / f"{i}.mp4", num_frames=10 + i)
        found.append(ClipRecord(f"clip {i}", str(path), label=i, captions=(f"Clip № {i}", "b")))
    found.append(ClipRecord("part", str(folder / "3.mp4"), start=0.4, end=0.8, label=(1, 2)))
    images = folder / "images"
    images.mkdir()
    for number in range(1, 4):
        image = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(image).save(images / f"img_{number:05}.png")
    found.append(
        ClipRecord(
            "images", str(images), num_frames=3, frame_pattern="img_{:05}.png", source="ssv2"
        )
    )
    return found


@pytest.fixture
def folder(tmp_path, records):
    write_shards(records, tmp_path / "shards", num_shards=3)
    return tmp_path / "shards"


def all_frames(record, data=None):
    with open_clip(record, data=data) as clip:
        return clip.read(range(clip.num_frames))


@pytest.mark.parametrize(("num_shards", "workers"), [(1, 1), (3, 2), (99, 3)])
def test_clips_come_back_in_order_and_as_they_were(tmp_path, records, num_shards, workers):
    written = write_shards(records, tmp_path / "out", num_shards=num_shards, workers=workers)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == min(num_shards, 6) + 1
    assert written.broken == ()
    reader = ShardSource(tmp_path / "out")
    assert len(reader) == 6
    assert reader.index == written.index
    for i, expected in enumerate(records):
        record, content, *_ = reader[i]
        assert record.path == record.id == expected.id
        fields = ("label", "captions", "start", "end", "num_frames", "frame_pattern", "source")
        assert [getattr(record, f) for f in fields] == [getattr(expected, f) for f in fields]
        if expected.num_frames is None:
            with open(expected.path, "rb") as file:
                assert content == file.read()
        assert np.array_equal(all_frames(record, content), all_frames(expected))


def test_folders_without_numbers_come_back_too(tmp_path, records):
    record = ClipRecord("images", records[-1].path)
    write_shards([record], tmp_path / "out", num_shards=1)
    read, content, *_ = ShardSource(tmp_path / "out")[0]
    assert read.num_frames == 3
    assert np.array_equal(all_frames(read, content), all_frames(record))


def test_sound_comes_back_too(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8_000, 0, "NONE", ""))
        sound.writeframes(bytes(range(200)) * 80)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    records = [ClipRecord(name, str(tmp_path / name)) for name in ("a.wav", "b.wav")]
    written = write_shards(records, tmp_path / "out", num_shards=1, skip_broken=True)
    assert [clip.record.id for clip in written.broken] == ["b.wav"]
    record, data, *_ = ShardSource(tmp_path / "out")[0]
    np.testing.assert_array_equal(
        clip_sound(record, 8_000, data=data), clip_sound(records[0], 8_000)
    )


def test_a_folder_may_have_brackets_in_its_name(tmp_path, records):
    folder = tmp_path / "part[1:2]"
    write_shards(records[:2], folder, num_shards=1)
    assert [ShardSource(folder)[i].record.id for i in range(2)] == ["clip 0", "clip 1"]


def test_the_same_clips_give_the_same_shards(tmp_path, folder, records):
    again = write_shards(records, tmp_path / "again", num_shards=3, workers=2)
    assert again.index == shards.read_index(folder)
    other = write_shards(records[::-1], tmp_path / "other", num_shards=3)
    assert other.index.digest() != again.index.digest()


def test_broken_clips_are_all_listed_and_nothing_is_written(tmp_path, records):
    bad = [ClipRecord("x", str(tmp_path / "x.mp4")), ClipRecord("y", str(tmp_path / "y.mp4"))]
    (tmp_path / "y.mp4").write_bytes(b"text")
    with pytest.raises(ShardError) as caught:
        write_shards([records[0], bad[0], records[1], bad[1]], tmp_path / "out", num_shards=2)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of the clips cannot be read:"
    assert "x.mp4: No such file" in lines[1]
    assert "y.mp4: expected a video file" in lines[2]
    assert [path.name for path in tmp_path.iterdir()] == ["y.mp4"]


def test_broken_clips_can_be_left_out(tmp_path, records):
    bad = ClipRecord("x", str(tmp_path / "x.mp4"))
    some = [bad, records[0], bad, records[1]]
    written = write_shards(some, tmp_path / "out", num_shards=4, skip_broken=True)
    assert [clip.record for clip in written.broken] == [bad, bad]
    assert [shard.records for shard in written.index.shards] == [1, 1]
    reader = ShardSource(tmp_path / "out")
    assert [reader[i].record.id for i in range(2)] == ["clip 0", "clip 1"]
    with pytest.raises(ShardError, match="expected clips that can be read, found none"):
        write_shards([bad], tmp_path / "none", num_shards=1, skip_broken=True)


def test_a_folder_with_something_in_it_is_left_alone(folder, records):
    with pytest.raises(OSError, match="shards exists; choose another"):
        write_shards(records[:1], folder, num_shards=1)
    assert len(ShardSource(folder)) == 6


def test_an_interrupted_run_leaves_nothing(tmp_path, records):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(records, tmp_path / "out", num_shards=2, on_clip=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error(tmp_path, records):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        message = r"/out/clips-00000-of-00001\.array_record: cannot write it: .*too large; name"
        with pytest.raises(OSError, match=message):
            write_shards(records[:1], tmp_path / "out", num_shards=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_for_on_a_full_disk(tmp_path, records, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "index.json"))

    monkeypatch.setattr(shard_writer, "_write_all", full)
    with pytest.raises(DiskFullError, match=rf"free disk, found .*: make room .*{tmp_path}/out'"):
        write_shards(records[:1], tmp_path / "out", num_shards=1)
    assert list(tmp_path.iterdir()) == []


def first_shard(folder):
    return folder / "clips-00000-of-00003.array_record"


def remove(folder):
    first_shard(folder).unlink()


def truncate(folder):
    os.truncate(first_shard(folder), 70_000)


def replace(folder):
    """Another file of the same size: ArrayRecord takes it for one without records."""
    path = first_shard(folder)
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "No such file"),
        (truncate, r"expected \d+ bytes, found 70000"),
        (replace, "expected 2 records, found 0"),
    ],
)
def test_a_shard_that_is_not_as_written_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(
        ShardError, match=rf"copy these again:\n  clips-00000-of-00003\.array_record: {message}"
    ):
        ShardSource(folder)


def flip_a_bit(folder):
    """In the pixels of the first clip."""
    data = bytearray(first_shard(folder).read_bytes())
    data[data.index(b"mdat") + 200] ^= 1
    first_shard(folder).write_bytes(data)


def test_checksums_find_a_changed_bit(folder):
    assert shards.check_shards(folder, workers=2).num_records == 6
    flip_a_bit(folder)
    with pytest.raises(ShardError, match=r"clips-00000-of-00003\.array_record: expected sha256"):
        shards.check_shards(folder)


def test_a_damaged_record_is_a_broken_clip(folder):
    flip_a_bit(folder)
    reader = ShardSource(folder)
    with pytest.raises(VideoError, match="shards: clip 0: expected an undamaged record"):
        reader[0]
    assert reader[1].record.id == "clip 1"


def edit(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "index.json").unlink(), "a folder without it is incomplete"),
        (lambda f: (f / "index.json").write_text("{"), "expected the index of shards, found"),
        (lambda f: edit(f, format="other 2"), "found 'other 2'"),
        (lambda f: edit(f, shards=[{"name": "a"}]), "expected the index of shards, found"),
    ],
)
def test_an_index_that_cannot_be_used_is_an_error(folder, change, message):
    change(folder)
    with pytest.raises(ShardError, match=message):
        ShardSource(folder)


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff\xffabc", b"\x02\0\0\0{}", b"x" * 100])
def test_what_is_no_clip_is_not_decoded(data):
    with pytest.raises(
        ValueError, match=rf"expected the record of a clip, found {len(data)} bytes"
    ):
        shards.decode_clip(data)


def test_a_record_must_have_the_size_that_it_states():
    data = shards.encode_clip(ClipRecord("a", "a.mp4"), b"abc")
    assert shards.decode_clip(data) == (ClipRecord("a", "a"), b"abc")
    with pytest.raises(ValueError, match="another size than it states"):
        shards.decode_clip(data[:-1])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"name": "../out.array_record"}, "the name of a file in the folder, found '../out"),
        ({"name": "/etc/hosts"}, "the name of a file in the folder, found '/etc/hosts'"),
        ({"name": ".."}, "the name of a file in the folder, found '..'"),
        ({"name": "a\0b"}, "the name of a file in the folder, found 'a"),
        ({"bytes": -1}, "expected numbers from 0"),
        ({"records": 2.0}, "records: expected int"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, changes, found):
    shard = {"name": "a", "records": 1, "bytes": 1, "sha256": ""} | changes
    index = {"shards": [shard], "format": shards.FORMAT}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "a").write_text("a")
    with pytest.raises(ShardError, match=f"expected the index of shards, found .*{found}"):
        shards.read_index(tmp_path)


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", "3", '{"shards": 3}', "{", '{"shards": [[]]}'])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ShardError, match="expected the index of shards, found"):
        shards.read_index(tmp_path)


def test_a_shard_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a")
    (tmp_path / "index.json").write_text(
        json.dumps({"shards": [{"name": "a", "records": 0, "bytes": 0, "sha256": ""}]})
    )
    with pytest.raises(ShardError, match="expected a regular file, found a pipe"):
        shards.check_shards(tmp_path)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("[]", "no JSON object"),
        ("3", "no JSON object"),
        ("[" * 10**5, "levels"),
        ('{"id": "a", "files": [2.0]}', "Expected `int`, got `float`"),
        ('{"id": "a", "files": [4, -2]}', "Expected `int` >= 0"),
        ('{"id": "a", "files": {}}', "Expected `array`"),
        ('{"id": "a"}', "Expected `array`"),
        ('{"files": [2]}', "Expected `str`, got `null` - at `$.path`"),
        ('{"id": 3, "files": [2]}', "Expected `str`, got `int`"),
        ('{"id": "a", "files": []}', "0 files of 1"),
        ('{"id": "a", "files": [1, 1]}', "2 files of 1"),
        ('{"id": "a", "num_frames": 1, "files": [1, 1]}', "2 files of 1"),
        ('{"id": "a", "num_frames": 0, "files": []}', "0 files of"),
        ('{"id": "a", "label": 1.5, "files": [2]}', "label"),
        ('{"id": "a", "captions": "x", "files": [2]}', "captions"),
        ('{"id": "a", "files": [1]}', "another size than it states"),
        ('{"id": "a", "frame_pattern": "{:0999999999}", "num_frames": 1, "files": [2]}', "'{:0999"),
        ('{"id": "a", "frame_pattern": "{0.x}", "num_frames": 1, "files": [2]}', "'{0.x}'"),
    ],
)
def test_records_with_other_headers_are_refused(header, found):
    data = len(header).to_bytes(4, "little") + header.encode() + b"ab"
    with pytest.raises(ValueError, match="expected the record of a clip, found") as caught:
        shards.decode_clip(data)
    assert found in str(caught.value)


def test_what_is_no_file_is_not_stored(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    written = ClipRecord("a", str(tmp_path / "pipe.mp4"))
    with pytest.raises(ShardError, match=r"pipe\.mp4: expected a regular file, found a pipe"):
        write_shards([written], tmp_path / "out", num_shards=1)
