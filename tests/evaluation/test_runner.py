"""The one runner, with evaluators that need no model and with a classifier on files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.video import VideoReader
from internvideo_jax.data.pipeline import eval_batches
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.data.transforms.frames import long_side_crops, resize_short_side
from internvideo_jax.data.transforms.sampling import sample_indices
from internvideo_jax.evaluation import runner
from internvideo_jax.evaluation.classification import ClassificationEvaluator, Predictions
from internvideo_jax.preprocessing import normalize
from tests.processes import outputs, system

DATA = DataConfig(num_classes=3, num_frames=4, image_size=32, segments=2, crops=3)
NOTHING = {"params": jnp.zeros(())}


@dataclasses.dataclass(frozen=True)
class Sums(runner.Forward):
    inputs = ("video", "weight")

    def forward(self, variables, batch):
        total = variables["scale"] * batch["video"].sum(axis=1)
        return {"total": total.astype(jnp.bfloat16), "rank": {"of": batch["weight"][:, None]}}


def batches_of(count, size, **columns):
    """Batches of a table whose rows are views, if nothing else is said each of another clip."""
    table = {
        "index": np.arange(count),
        "segment": np.arange(count),
        "crop": np.zeros(count, int),
        "valid": np.ones(count, bool),
    } | {name: np.asarray(column) for name, column in columns.items()}
    table["error"] = np.where(table["valid"], "", "no picture")
    for start in range(0, count, size):
        yield {name: column[start : start + size] for name, column in table.items()}


def test_rows_are_what_the_forward_pass_gives_in_the_order_of_the_data_set():
    video = np.arange(12, dtype=np.float32).reshape(6, 2)
    batches = batches_of(
        6, 2, video=video, weight=np.arange(6), index=[4, 4, 0, 0, 7, -1],
        segment=[1, 0, 0, 0, 0, 0], crop=[0, 0, 1, 0, 0, 0], valid=[True] * 5 + [False],
    )  # fmt: skip
    told = []
    rows = runner.collect(Sums(), {"scale": jnp.full((), 2.0)}, batches, on_clips=told.append)
    assert rows.columns["index"].tolist() == [0, 0, 4, 4, 7]
    assert rows.columns["crop"].tolist() == [0, 1, 0, 0, 0]
    assert rows.output["total"].dtype == np.float32
    np.testing.assert_allclose(rows.output["total"], 2 * video.sum(1)[[3, 2, 1, 0, 4]])
    assert rows.output["rank"]["of"].tolist() == [[3], [2], [1], [0], [4]]
    assert (rows.num_clips, rows.errors, told) == (3, {}, [1, 1, 1])
    # Inputs would fill the memory.
    assert "video" not in rows.columns


def test_clips_that_cannot_be_read_are_told_with_the_reasons():
    class Counting(Sums):
        def complete(self, rows, variables):
            assert variables["scale"] == 1
            return rows

        def metrics(self, rows):
            return {"rows": float(len(rows.columns["index"]))}

    batches = batches_of(
        4, 2, video=np.ones((4, 2)), weight=np.ones(4), valid=[True, False, True, False]
    )
    told = []
    found = runner.evaluate(Counting(), {"scale": jnp.ones(())}, batches, on_failed=told.append)
    assert found == {"rows": 2.0, "clips": 2.0, "failed": 2.0}
    assert told == [{1: "no picture", 3: "no picture"}]


def test_equal_evaluators_share_a_program():
    traced = []

    @dataclasses.dataclass(frozen=True)
    class Counting(runner.Forward):
        factor: int

        def forward(self, variables, batch):
            traced.append(self.factor)
            return batch["video"] * self.factor

    for factor in (1, 1, 2):
        runner.collect(Counting(factor), NOTHING, batches_of(4, 2, video=np.ones((4, 2))))
    assert set(traced) == {1, 2}
    assert traced.count(1) == traced.count(2)


def test_a_cpu_runs_what_there_is_through_one_program():
    shapes = []

    @dataclasses.dataclass(frozen=True)
    class Shapes(runner.Forward):
        def forward(self, variables, batch):
            shapes.append(batch["video"].shape)
            return batch["video"].sum(axis=1)

    video = np.arange(14.0, dtype=np.float32).reshape(7, 2)
    outputs = [out for _, out in runner.run(Shapes(), NOTHING, batches_of(7, 4, video=video))]
    assert [len(output) for output in outputs] == [4, 3]
    np.testing.assert_array_equal(np.concatenate(outputs), video.sum(axis=1))
    # Traced once, for a single row: neither padded nor compiled anew for the smaller batch.
    assert shapes == [(1, 2)]


def test_accelerators_take_powers_of_two():
    counts = (1, 2, 3, 5, 8, 9)
    assert [runner.rows_per_program(count, "tpu") for count in counts] == [1, 2, 4, 8, 8, 16]
    assert [runner.rows_per_program(count, "gpu") for count in counts] == [1, 2, 4, 8, 8, 16]
    # Of four devices each takes as many.
    assert [runner.rows_on_mesh(count, 4, "tpu") for count in counts] == [4, 4, 4, 8, 8, 16]
    assert [runner.rows_on_mesh(count, 4, "cpu") for count in counts] == [4, 4, 4, 8, 8, 12]


def test_rows_that_fill_up_are_cut_off_again(monkeypatch):
    monkeypatch.setattr(runner, "rows_per_program", lambda count, platform: 8)
    video = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    (rows,) = [
        output["total"]
        for _, output in runner.run(
            Sums(), {"scale": jnp.ones(())}, batches_of(5, 5, video=video, weight=np.arange(5))
        )
    ]
    np.testing.assert_array_equal(rows, video.sum(axis=1))


def test_batches_are_closed_when_the_forward_pass_fails():
    class Batches:
        is_closed = False

        def __iter__(self):
            return batches_of(4, 2, video=np.ones((4, 2)))

        def close(self):
            self.is_closed = True

    batches = Batches()
    with pytest.raises(KeyError, match="weight"):
        runner.collect(Sums(), {"scale": 1.0}, batches)
    assert batches.is_closed


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


def views_of(records, batch_size, **options):
    fields = ("video", "label")
    source = RecordSource(records)
    return eval_batches(DATA, fields, batch_size=batch_size, source=source, **options)


@pytest.mark.parametrize("batch_size", [5, 100])
def test_every_view_of_every_readable_clip_counts_once(records, classifier, batch_size):
    evaluator = ClassificationEvaluator(classifier.module, classifier.preprocessing.video)
    batches = views_of(records, batch_size, num_threads=2)
    rows = runner.collect(evaluator, classifier.variables, batches)
    names = ("index", "segment", "crop")
    found = list(zip(*(rows.columns[name].tolist() for name in names), strict=True))
    assert found == [(i, s, k) for i in (0, 1, 3) for s in range(2) for k in range(3)]
    assert list(rows.errors) == [2]
    assert records[2].path not in rows.errors[2]
    predictions = Predictions.of(rows)
    assert predictions.labels.tolist() == [0, 1, 1]
    assert np.abs(predictions.probabilities[0] - predictions.probabilities[1]).max() > 1e-4

    indices = [sample_indices("sparse", 12, 4, view=(segment, 2)) for segment in range(2)]
    assert rows.columns["frame_indices"][-3].tolist() == indices[1].tolist()
    with VideoReader(records[3].path) as reader:
        frames = [reader.read(chosen) for chosen in indices]
    small = [np.stack([resize_short_side(f, 32) for f in clip]) for clip in frames]
    views = np.concatenate([long_side_crops(clip, 3) for clip in small])
    video = normalize(views, classifier.preprocessing.video)
    output = jax.jit(classifier.module.apply)(classifier.variables, video)
    np.testing.assert_allclose(rows.output[-6:], output.logits, atol=1e-4)
    mean = jax.nn.softmax(output.logits).mean(0)
    np.testing.assert_allclose(predictions.probabilities[2], mean, atol=1e-6)


def test_a_file_is_decoded_once(records, monkeypatch):
    asked = []
    read = VideoReader.read

    def counting(self, indices, **options):
        asked.append(list(indices))
        return read(self, indices, **options)

    monkeypatch.setattr(VideoReader, "read", counting)
    assert sum(len(batch["index"]) for batch in views_of(records[:1], 6)) == 6
    assert len(asked) == 1


# Clip 1 has a view in either process; the second process's last row is filling.
WORKER = """
import dataclasses, json
import jax, numpy as np
from internvideo_jax.evaluation import runner
from internvideo_jax.evaluation.classification import merge_views
from tests.processes import join_system

join_system()

@dataclasses.dataclass(frozen=True)
class Echo(runner.Forward):
    def forward(self, variables, batch):
        return batch["video"]

share = [
    {"video": [[3, 0], [1, 0], [0, 0]], "index": [0, 1, 2], "segment": [0, 0, 0],
     "valid": [True, True, False], "error": ["", "", "broken"]},
    {"video": [[0, 5], [8, 8], [9, 9]], "index": [1, 2, -1], "segment": [1, 1, 0],
     "valid": [True, True, False], "error": ["", "", ""]},
][jax.process_index()]
batch = {name: np.array(column) for name, column in share.items()}
batch |= {"crop": np.zeros(3, np.int32), "caption": np.array(["a dog"] * 3)}
# Not all at once.
runner._PIECE = 100
rows = runner.collect(Echo(), {"x": np.zeros(1)}, [batch])
merged = merge_views(rows.columns["index"], np.asarray(rows.output, np.float32))
print(json.dumps([rows.columns["index"].tolist(), rows.errors, merged.tolist()]))
"""


@pytest.mark.slow
def test_processes_share_their_views():
    with system(2, 1, "-c", WORKER) as running:
        results = [json.loads(output.splitlines()[-1]) for output in outputs(running)]
    assert results[0] == results[1]
    index, errors, probabilities = results[0]
    assert (index, errors) == ([0, 1, 1], {"2": "broken"})
    views = jax.nn.softmax(np.array([[3.0, 0], [1, 0], [0, 5]]))
    np.testing.assert_allclose(probabilities, [views[0], views[1:].mean(0)], atol=1e-6)
