"""Running a classifier over views, from files and from batches."""

import dataclasses
import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.video import VideoError, VideoReader, read_frames
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.data.transforms import views
from internvideo_jax.data.transforms.views import EvalViews
from internvideo_jax.evaluation.classification_run import (
    UnreadableClip,
    classification_metrics,
    classifier_forward,
    metrics,
    predict,
    read_views,
    view_batches,
)
from internvideo_jax.evaluation.features import sample_clip
from internvideo_jax.models import (
    VideoClassifier,
    VideoClassifierConfig,
    VideoViT,
    VideoViTConfig,
    abstract_variables,
)
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing, normalize
from internvideo_jax.saved_model import SavedModel

ENCODER = VideoViTConfig(
    width=16,
    depth=1,
    num_heads=2,
    mlp_dim=16,
    patch_size=16,
    image_size=32,
    num_frames=4,
    pooled_dim=8,
    pooler_heads=2,
)
PLAN = EvalViews(num_frames=4, image_size=32, segments=2, crops=3)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Wide clips of 9 to 12 frames; the third is broken."""
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for number, motion in enumerate(("left", "right", "up", "down")):
        path = folder / f"{motion}.mp4"
        frames = synthetic.render(synthetic.Scene("ring", "blue", motion), 9 + number, size=80)
        synthetic.write_video(path, frames[:, 16:64])
        made.append(ClipRecord(id=motion, path=str(path), label=number % 2))
    (folder / "up.mp4").write_bytes(b"no video" * 100)
    return made


@pytest.fixture(scope="module")
def model():
    config = VideoClassifierConfig(ENCODER, num_classes=3)
    module, rng = VideoClassifier(config), np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract_variables(module)
    )
    return SavedModel(
        module,
        variables,
        config,
        Preprocessing(VideoPreprocessing(image_size=32, num_frames=4)),
        {},
    )


def test_views_of_a_file_are_those_of_each_segment(records):
    clip = read_views(records[1], PLAN)
    assert clip.views.shape == (6, 4, 32, 32, 3)
    assert clip.views.dtype == np.uint8
    assert clip.num_frames == 10
    assert clip.frame_indices.tolist() == PLAN.indices(10).tolist()
    for segment, indices in enumerate(clip.frame_indices):
        frames = read_frames(records[1].path, indices).frames
        expected = views.test_views(frames, 32, 3)
        assert np.array_equal(clip.views[3 * segment : 3 * segment + 3], expected)


def test_the_single_view_is_that_of_validation(records):
    plan = EvalViews(num_frames=4, image_size=32, segments=1, crops=1)
    clip = read_views(records[1], plan)
    sampled = sample_clip(records[1].path, 4, 32)
    assert clip.frame_indices.tolist() == [sampled.frame_indices.tolist()]
    assert np.array_equal(clip.views[0], sampled.frames)


def test_a_file_is_decoded_once(records, monkeypatch):
    asked = []
    read = VideoReader.read

    def counting(self, indices, **options):
        asked.append(list(indices))
        return read(self, indices, **options)

    monkeypatch.setattr(VideoReader, "read", counting)
    read_views(records[0], PLAN)
    assert len(asked) == 1


@pytest.mark.parametrize("batch_size", [1, 4, 6, 7, 100])
def test_batches_hold_every_view_once(records, batch_size):
    told = []
    batches = list(
        view_batches(records, PLAN, batch_size=batch_size, num_threads=2, on_clip=told.append)
    )
    assert all(len(batch["video"]) == batch_size for batch in batches)
    columns = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    assert np.array_equal(columns["valid"], columns["index"] >= 0)
    used = columns["valid"]
    rows = [tuple(columns[name][used]) for name in ("index", "segment", "crop")]
    expected = [(i, s, k) for i in (0, 1, 3) for s in range(2) for k in range(3)]
    assert list(zip(*rows, strict=True)) == expected
    assert sum(~used) == -len(expected) % batch_size
    assert [clip.index for clip in told] == [0, 1, 2, 3]
    (broken,) = (clip for clip in told if isinstance(clip, UnreadableClip))
    assert broken.index == 2
    assert isinstance(broken.error, VideoError)
    assert records[2].path not in broken.reason


def test_predictions_do_not_depend_on_batches_and_threads(records, model):
    forward = classifier_forward(model)
    expected = predict(forward, view_batches(records, PLAN, batch_size=6, num_threads=1))
    assert expected.index.tolist() == [0, 1, 3]
    assert expected.num_views.tolist() == [6, 6, 6]
    other = predict(forward, view_batches(records, PLAN, batch_size=5, num_threads=3))
    np.testing.assert_allclose(other.probabilities, expected.probabilities, atol=1e-6)
    assert np.abs(expected.probabilities[0] - expected.probabilities[1]).max() > 1e-4
    clip = read_views(records[3], PLAN)
    video = normalize(clip.views, model.preprocessing.require_video())
    output = jax.jit(model.module.apply)(model.variables, video)
    mean = jax.nn.softmax(output.logits).mean(0)
    np.testing.assert_allclose(expected.probabilities[2], mean, atol=1e-6)


def test_only_classifiers_classify(model):
    encoder = dataclasses.replace(model, module=VideoViT(ENCODER))
    with pytest.raises(ValueError, match="expected a video classifier, found VideoViT"):
        classifier_forward(encoder)


def batches_of(logits, index, label=None, valid=None, size=4):
    """Batches whose "video" is what the forward pass hands back as logits."""
    count = len(index)
    columns = {
        "video": np.asarray(logits, np.float32),
        "index": np.asarray(index),
        "segment": np.arange(count),
        "crop": np.zeros(count, int),
        "valid": np.ones(count, bool) if valid is None else np.asarray(valid),
    }
    if label is not None:
        columns["label"] = np.asarray(label)
    for start in range(0, count, size):
        yield {name: column[start : start + size] for name, column in columns.items()}


def test_the_best_five_count_where_there_are_more_classes():
    logits = -np.arange(6.0)[None].repeat(2, axis=0)
    values = classification_metrics(lambda x: x, batches_of(logits, [0, 1], [4, 5], [True, True]))
    assert (values["top1"], values["top5"]) == (0, 50)


def test_metrics_of_batches():
    logits = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0], [0, 1, 5], [9, 0, 0]])
    index, label = [5, 5, 2, 2, 7, -1], [0, 0, 1, 1, 2, 0]
    valid = [True, True, True, True, True, False]
    values = classification_metrics(lambda x: x, batches_of(logits, index, label, valid))
    # Clip 5 ties between 0 and 1, clip 2 between 0 and 2.
    np.testing.assert_allclose(values["top1"], 200 / 3)
    assert "top5" not in values
    np.testing.assert_allclose(values["mean_class_accuracy"], 200 / 3)
    assert (values["clips"], values["failed"]) == (3, 0)
    assert all(type(value) is float for value in values.values())


def test_clips_with_an_unreadable_view_are_left_out_and_counted():
    logits = [[3, 0], [3, 0], [0, 3], [0, 3]]
    batches = list(batches_of(logits, [0, 0, 1, 1], [0, 0, 0, 0], [True, True, True, False]))
    predictions = predict(lambda x: x, batches)
    assert predictions.index.tolist() == [0]
    assert predictions.failed.tolist() == [1]
    values = classification_metrics(lambda x: x, batches)
    assert (values["top1"], values["clips"], values["failed"]) == (100, 1, 1)


def test_multi_label_data_have_mean_average_precision_alone():
    labels = np.array([[1, 1, 0], [0, 1, 0]], np.float32)
    values = classification_metrics(lambda x: x, batches_of([[2, 1, 0], [0, 1, 0]], [0, 1], labels))
    assert set(values) == {"mAP", "clips", "failed"}
    np.testing.assert_allclose(values["mAP"], 100)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one batch"),
        (list(batches_of([[1, 2]], [0])), "batches with `label`"),
        (list(batches_of([[1, 2]], [0], [0], [False])), "could be read, found none"),
        (list(batches_of([[np.nan, 2]], [0], [0])), "found NaN for clip 0"),
    ],
)
def test_nothing_to_measure(batches, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(lambda x: x, batches)


def test_metrics_of_no_clips():
    with pytest.raises(ValueError, match="found none"):
        metrics(np.zeros((0, 3), np.float32), np.zeros(0, int))


# Clip 1 has a view in either process; the second process's last row is filling.
WORKER = """
import json, sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from internvideo_jax.evaluation.classification_run import predict

share = [
    {"logits": [[3, 0], [1, 0]], "index": [0, 1], "segment": [0, 0], "valid": [True, True]},
    {"logits": [[0, 5], [9, 9]], "index": [1, -1], "segment": [1, 0], "valid": [True, False]},
][int(sys.argv[2])]
batch = {"crop": np.zeros(2, np.int64), "label": np.array([0, 1])}
batch |= {name: np.array(share[name]) for name in ("index", "segment", "valid")}
batch["video"] = np.array(share["logits"], np.float32)
result = predict(lambda x: x, [batch])
print(json.dumps([result.index.tolist(), result.num_views.tolist(), result.probabilities.tolist()]))
"""


@pytest.mark.slow
def test_processes_share_their_views():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    results = [
        json.loads(worker.communicate(timeout=120)[0].splitlines()[-1]) for worker in workers
    ]
    assert results[0] == results[1]
    index, num_views, probabilities = results[0]
    assert (index, num_views) == ([0, 1], [1, 2])
    views = jax.nn.softmax(np.array([[3.0, 0], [1, 0], [0, 5]]))
    np.testing.assert_allclose(probabilities, [views[0], views[1:].mean(0)], atol=1e-6)
