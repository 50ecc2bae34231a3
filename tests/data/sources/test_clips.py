"""Sources give records and what they hold of the clips."""

import json
import pickle
import sys
import types

import numpy as np
import pytest

from internvideo_jax.data.annotations.records import AnnotationError, ClipRecord
from internvideo_jax.data.config import ClipSet
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.decode.decoded import DecodedClip
from internvideo_jax.data.decode.video import VideoError
from internvideo_jax.data.sources import clips as sources
from internvideo_jax.data.sources.clips import RecordSource, TfdsSource, open_source
from internvideo_jax.data.sources.shard_writer import write_shards
from internvideo_jax.data.sources.shards import ShardSource


@pytest.fixture
def annotations(tmp_path, render):
    lines = []
    for i in range(3):
        render(tmp_path / f"{i}.mp4", num_frames=6)
        lines.append(json.dumps({"video": f"{i}.mp4", "label": i}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    return tmp_path / "clips.jsonl"


def test_annotations_and_their_shards_give_the_same_clips(tmp_path, annotations):
    # A recipe for lists takes jsonl files as well.
    files = open_source(ClipSet(annotations=str(annotations), format="csv"), num_classes=3)
    assert isinstance(files, RecordSource)
    write_shards(files.records, tmp_path / "shards", num_shards=2)
    packed = open_source(ClipSet(shards=str(tmp_path / "shards")))
    assert isinstance(packed, ShardSource)
    assert len(files) == len(packed) == 3
    for i in range(3):
        assert files[i].record.label == packed[i].record.label == i
        with files[i].open() as clip, packed[i].open() as other:
            assert clip.num_frames == other.num_frames == 6
            assert np.array_equal(clip.read([0, 3]), other.read([0, 3]))


def test_labels_of_annotations_are_checked(annotations):
    with pytest.raises(AnnotationError, match=r"clips\.jsonl:3: expected a label from 0 to 1"):
        open_source(ClipSet(annotations=str(annotations)), num_classes=2)


def test_sources_travel_to_other_processes(tmp_path, annotations):
    files = open_source(ClipSet(annotations=str(annotations)))
    write_shards(files.records, tmp_path / "shards", num_shards=1)
    packed = ShardSource(tmp_path / "shards")
    assert packed[0].record.id == "0.mp4"
    for source in (files, packed):
        copy = pickle.loads(pickle.dumps(source))
        assert copy[1] == source[1]
        assert copy.digest() == source.digest()


def test_digests_change_with_records_and_files(annotations):
    source = open_source(ClipSet(annotations=str(annotations)))
    digest = source.digest()
    assert RecordSource(source.records[::-1]).digest() != digest
    with open(annotations.parent / "1.mp4", "ab") as file:
        file.write(b"x")
    assert source.digest() != digest
    changed = source.digest()
    (annotations.parent / "1.mp4").unlink()
    assert source.digest() not in (digest, changed)


def test_fingerprints_do_not_change_with_the_place(annotations, tmp_path):
    source = open_source(ClipSet(annotations=str(annotations)))
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in annotations.parent.glob("*.*"):
        file.rename(moved / file.name)
    elsewhere = open_source(ClipSet(annotations=str(moved / annotations.name)))
    assert elsewhere.fingerprint() == source.fingerprint()
    assert RecordSource(source.records[::-1]).fingerprint() != source.fingerprint()


def test_lists_in_another_format_than_the_recipes_are_read(tmp_path, caplog):
    path = tmp_path / "train.csv"
    path.write_text("a.mp4 0\nb.mp4 1\n")
    recipe = ClipSet(annotations=str(path), format="csv", separator=",")
    source = open_source(recipe, num_classes=2)
    assert [record.label for record in source.records] == [0, 1]
    assert "not in the config's format (csv)" in caplog.text
    path.write_text("a.mp4 0\nb.mp4 7\n")
    with pytest.raises(AnnotationError, match="1 of 2 entries are wrong"):
        open_source(recipe, num_classes=2)
    path.write_text("a.mp4,0\nb.mp4\n")
    with pytest.raises(AnnotationError, match=r"train\.csv:2: expected 2 columns"):
        open_source(recipe, num_classes=2)


def test_decoded_frames_read_like_a_file(annotations):
    record = ClipRecord("0", str(annotations.parent / "0.mp4"))
    with open_clip(record) as clip:
        frames = clip.read(range(6))
        with DecodedClip("0", frames) as decoded:
            assert decoded.num_frames == 6
            for chosen in ([5, 0, 0], range(2, 4)):
                assert np.array_equal(decoded.read(chosen), clip.read(chosen))
            half = decoded.read([1, 2], transform=lambda frame: frame[::2])
            assert np.array_equal(half, frames[1:3, ::2])
            with pytest.raises(ValueError, match="expected frame numbers from 0 to 5, found"):
                decoded.read([6])
    with pytest.raises(
        VideoError, match=r"expected frames \[T, H, W, 3\], found shape \(0, 4, 4, 3\)"
    ):
        DecodedClip("none", np.empty((0, 4, 4, 3), np.uint8))


class FakeBuilder:
    """The part of a tensorflow_datasets builder that a source uses."""

    def __init__(self, name, shape=(None, 8, 8, 3)):
        self.name = name
        self.prepared = []
        features = {"video": types.SimpleNamespace(shape=shape), "label": None}
        self.info = types.SimpleNamespace(
            features=features,
            supervised_keys=("video", "label"),
            full_name=f"{name}/1.0.0",
            file_format="tfrecord",
        )

    def download_and_prepare(self, **options):
        self.prepared.append(options)

    def as_data_source(self, split):
        assert self.prepared == [{"file_format": "array_record"}]
        assert split == "test"
        videos = [np.full((4, 8, 8, 3), i, np.uint8) for i in range(2)]
        return [{"video": video, "label": np.int64(i + 5)} for i, video in enumerate(videos)]


@pytest.fixture
def fake_tfds(monkeypatch):
    module = types.ModuleType("tensorflow_datasets")
    module.builder = FakeBuilder
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: object())
    return module


def test_tensorflow_datasets_give_decoded_clips(fake_tfds):
    source = open_source(ClipSet(tfds="ucf101", tfds_split="test"))
    assert len(source) == 2
    clip = source[1]
    assert (clip.record.id, clip.record.label) == ("ucf101/test/1", 6)
    with clip.open() as reader:
        assert reader.num_frames == 4
        assert np.array_equal(reader.read([3]), np.full((1, 8, 8, 3), 1))
    assert source.digest() != TfdsSource("hmdb51", "test").digest()


def test_data_sets_without_videos_are_refused(fake_tfds, monkeypatch):
    monkeypatch.setattr(fake_tfds, "builder", lambda name: FakeBuilder(name, shape=(28, 28, 1)))
    with pytest.raises(ValueError, match="mnist: expected a data set with RGB videos as 'video'"):
        TfdsSource("mnist", "train")


def test_data_sets_without_random_access_are_refused(fake_tfds, monkeypatch):
    def refuse(builder, split):
        raise NotImplementedError

    monkeypatch.setattr(FakeBuilder, "as_data_source", refuse)
    with pytest.raises(ValueError, match="ucf101: expected a data set in a random-access format"):
        TfdsSource("ucf101", "train")


def test_tensorflow_datasets_need_tensorflow(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'internvideo-jax\[tf\]'"):
        TfdsSource("ucf101", "train")


@pytest.fixture
def class_folders(tmp_path):
    """Two folders of files, which are looked for and not looked into."""
    for name in ("walk/b.mp4", "walk/more/c.mp4", "run/a.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


def test_a_folder_for_each_class_is_a_list(class_folders):
    clips = ClipSet(annotations=str(class_folders))
    source = open_source(clips, num_classes=2, classes=("run", "walk"))
    found = [(clip.record.id, clip.record.label) for clip in source]
    assert found == [("run/a.mp4", "run"), ("walk/b.mp4", "walk"), ("walk/more/c.mp4", "walk")]
    assert source[1].record.path == str(class_folders / "walk/b.mp4")
    moved = class_folders.rename(class_folders.with_name("moved"))
    assert open_source(ClipSet(annotations=str(moved))).fingerprint() == source.fingerprint()


def test_folders_of_other_classes_are_refused(class_folders):
    with pytest.raises(ValueError, match="the 2 classes, found 'walk'; did you mean 'wall'"):
        open_source(ClipSet(annotations=str(class_folders)), num_classes=2, classes=("run", "wall"))
