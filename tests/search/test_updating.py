"""Indices are made, kept, and brought up to date."""

import dataclasses
import os

import numpy as np
import pytest

from internvideo_jax.data.synthetic import scenes
from internvideo_jax.evaluation.features import FailedClip
from internvideo_jax.evaluation.retrieval.metrics import normalized
from internvideo_jax.evaluation.window_features import extract_windows
from internvideo_jax.search import updating
from internvideo_jax.search.index_file import IndexedFile
from internvideo_jax.search.updating import compare, update, with_clusters
from tests.search.indices import SETTINGS, random_index, random_vectors
from tests.small_models import clip_model, clip_stage2

# Windows of 0.4 s, half as far apart.
WINDOWS = dataclasses.replace(SETTINGS, window=0.4, stride=0.2)


@pytest.fixture(scope="module")
def model():
    return clip_model(clip_stage2("visual"))


@pytest.fixture
def videos(tmp_path):
    """Four, one and two windows."""
    paths = []
    for color, length in (("red", 25), ("green", 8), ("blue", 15)):
        path = tmp_path / f"{color}.mp4"
        scenes.write_video(path, scenes.render(scenes.Scene("ring", color, "left"), length, 48))
        paths.append(str(path))
    return paths


def updated(index, model, paths, folders=()):
    """The index afterwards, how many windows are new, what failed, and how often it was saved."""
    saved = []
    todo = compare(index, paths, folders)
    new, failed = update(index, WINDOWS, todo, model, saved.append, batch_size=3)
    return (saved[-1] if saved else index), new, failed, len(saved)


def paths_of(index):
    return [index.files[number].path for number in index.file_of]


def test_an_index_has_the_embeddings_of_all_windows(model, videos):
    index, new, failed, saves = updated(None, model, videos)
    assert (new, failed, saves) == (7, [], 1)
    assert paths_of(index) == [videos[0]] * 4 + [videos[1]] + [videos[2]] * 2
    windows = list(extract_windows(videos, model, WINDOWS.windows, kind="embedding"))
    np.testing.assert_array_equal(index.times, [(w.start, w.end) for w in windows])
    expected = normalized(np.stack([w.features for w in windows]), "windows")
    np.testing.assert_allclose(index.vectors, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)


def test_only_what_is_new_or_changed_is_read_again(model, videos, tmp_path):
    before, *_ = updated(None, model, videos[:2])
    same, new, _, saves = updated(before, model, videos[:2])
    assert (same is before, new, saves) == (True, 0, 0)
    after, new, *_ = updated(before, model, videos)
    assert (new, paths_of(after)[:5]) == (2, paths_of(before))
    np.testing.assert_array_equal(after.vectors[:5], before.vectors)
    # Of other content at the same place.
    os.replace(videos[2], videos[0])
    changed, new, failed, _ = updated(after, model, videos[:2], [str(tmp_path)])
    assert (new, failed) == (2, [])
    assert paths_of(changed) == [videos[1]] + [videos[0]] * 2
    np.testing.assert_array_equal(changed.vectors[1:], after.vectors[5:])


def test_what_is_gone_from_a_folder_is_dropped_and_the_rest_stays(model, videos, tmp_path):
    index, *_ = updated(None, model, videos)
    os.remove(videos[0])
    # Nobody has said that these are all.
    assert updated(index, model, videos[1:2])[0] is index
    less, new, _, saves = updated(index, model, videos[1:2], [str(tmp_path)])
    assert (new, saves, paths_of(less)) == (0, 1, [videos[1]])
    # A folder whose name begins alike is another.
    assert compare(index, [], [str(tmp_path)[:-1]]).gone == ()


def test_what_cannot_be_read_is_left_out_and_tried_again(model, videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    os.symlink(tmp_path / "nowhere", tmp_path / "link.mp4")
    broken = [str(tmp_path / name) for name in ("bad.mp4", "link.mp4")]
    index, new, failed, _ = updated(None, model, [broken[0], videos[1], broken[1]])
    assert (new, [type(f) for f in failed], [f.source for f in failed]) == (
        1, [FailedClip] * 2, broken,
    )  # fmt: skip
    assert paths_of(index) == [videos[1]]
    assert [file.path for file in compare(index, [*broken, videos[1]]).read] == broken
    nothing, new, failed, saves = updated(None, model, broken)
    assert (nothing, new, len(failed), saves) == (None, 0, 2, 0)


def test_an_interruption_leaves_what_was_done(model, videos, monkeypatch):
    saved = []

    def interrupted(*args, **options):
        for result in extract_windows(*args, **options):
            if result.source == videos[2]:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(updating, "extract_windows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        update(None, WINDOWS, compare(None, videos), model, saved.append)
    # The file before is complete only when the next one begins.
    assert paths_of(saved[-1]) == [videos[0]] * 4
    monkeypatch.undo()
    _, new, *_ = updated(saved[-1], model, videos)
    assert new == 3


def test_it_is_saved_now_and_then(model, videos, monkeypatch):
    monkeypatch.setattr(updating, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(updating, "_SAVE_SHARE", 0.0)
    *_, saves = updated(None, model, videos)
    assert saves == 4


def test_clusters_serve_until_there_are_twice_as_many(model, videos, monkeypatch):
    monkeypatch.setattr(updating, "MIN_CLUSTERED", 5)
    few, *_ = updated(None, model, videos[:1])
    assert few.clusters is None
    more, *_ = updated(few, model, videos)
    assert more.clusters.made_of == 7
    assert updated(more, model, videos)[0] is more
    # A file goes, another comes back: the others keep their clusters.
    os.utime(videos[1])
    again, new, *_ = updated(more, model, videos)
    assert (new, again.clusters.made_of) == (1, 7)
    assert again.clusters.centers is more.clusters.centers
    assert again.clusters.starts[-1] == 7
    for index in (more, again):
        numbers = np.repeat(np.arange(len(index.clusters.centers)), np.diff(index.clusters.starts))
        own = (index.vectors * index.clusters.centers[numbers]).sum(axis=1)
        np.testing.assert_allclose(
            own, (index.vectors @ index.clusters.centers.T).max(axis=1), atol=1e-6
        )
        assert sorted(paths_of(index)) == sorted(paths_of(more))


def test_twice_as_many_windows_get_new_clusters():
    index = with_clusters(random_index(20), least=1)
    assert index.clusters.made_of == 20
    vectors = np.concatenate([index.vectors, random_vectors(21, seed=3)])
    file_of = np.zeros(41, np.int32)
    starts = np.append(index.clusters.starts[:-1], 41)
    clusters = dataclasses.replace(index.clusters, starts=starts)
    larger = dataclasses.replace(
        index,
        files=(IndexedFile("/a.mp4", 1, 1),),
        file_of=file_of,
        times=np.zeros((41, 2)),
        vectors=vectors,
        clusters=clusters,
    )
    assert with_clusters(larger, least=1).clusters.made_of == 41
