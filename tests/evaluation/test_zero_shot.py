"""Clips compared with the names of classes, and with candidates of their own."""

import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.pipeline import eval_batches
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.evaluation import prediction, runner
from internvideo_jax.evaluation.features import FailedClip
from internvideo_jax.evaluation.multiple_choice import MultipleChoiceEvaluator
from internvideo_jax.evaluation.prompt_ensemble import PromptEnsemble
from internvideo_jax.evaluation.zero_shot import (
    ZeroShotEvaluator,
    zero_shot_classifier,
    zero_shot_encoder,
)
from internvideo_jax.loading import Model
from internvideo_jax.models.stage2 import TEMPERATURES
from internvideo_jax.preprocessing import normalize
from tests.small_models import save_stage2

ENSEMBLE = PromptEnsemble(("the {}", "a {} moves left", "{}"))
NAMES = ("red ring", "blue ring", "green cross")
SEGMENTS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model.load(save_stage2(tmp_path_factory.mktemp("stage2")))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    found = []
    for number, color in enumerate(("red", "blue", "cyan")):
        path = folder / f"{color}.mp4"
        scenes.write_video(path, scenes.render(scenes.Scene("ring", color, "left"), 9, 48))
        # The second question has more candidates.
        candidates = (*NAMES, "circle")[: 3 + (number == 1)]
        found.append(ClipRecord(color, str(path), label=number, captions=candidates))
    return found


def data(**changes):
    return DataConfig(
        sampling="intervals", num_frames=4, image_size=32, resize="bicubic_square",
        segments=SEGMENTS, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(model, records):
    """Logits of all clips and names, by the model's own methods."""
    source = RecordSource(records)
    (batch,) = eval_batches(data(), ("video",), batch_size=64, source=source)
    module, variables = model.module, model.variables
    clips = normalize(batch["video"], model.preprocessing.video)

    def embed(value, *more, method):
        embedding = jax.jit(lambda *x: module.apply(variables, *x, method=method).embedding)
        return np.array(embedding(value, *more))

    tokenizer = zero_shot_encoder(model, ENSEMBLE).tokenizer
    texts = embed(*tokenizer(ENSEMBLE.texts((*NAMES, "circle"))), method="encode_text")
    views = embed(clips, method="encode_video").reshape(len(records), SEGMENTS, -1)
    clips = views.mean(axis=1)
    clips /= np.linalg.norm(clips, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    cosines = (clips @ texts.T).reshape(len(clips), 4, len(ENSEMBLE.templates)).mean(axis=2)
    temperature = np.clip(variables["params"]["temperature"], *TEMPERATURES)
    return cosines / temperature


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def measured(evaluator, model, records, config):
    batches = eval_batches(config, evaluator.fields, batch_size=2, source=RecordSource(records))
    rows = runner.collect(evaluator, model.variables, batches)
    return evaluator.complete(rows, model.variables)


def test_a_class_is_the_mean_of_the_cosines_with_its_texts(model, records, expected):
    evaluator = ZeroShotEvaluator(zero_shot_encoder(model, ENSEMBLE), NAMES)
    rows = measured(evaluator, model, records, data(num_classes=3))
    np.testing.assert_allclose(rows.output, expected[:, :3], atol=2e-4)
    assert rows.columns["label"].tolist() == [0, 1, 2]
    metrics = evaluator.metrics(rows)
    right = (expected[:, :3].argmax(axis=1) == np.arange(3)).mean()
    assert metrics["top1"] == pytest.approx(100 * right)
    # Of five or fewer classes there is no top5, and no mean with it.
    assert set(metrics) == {"top1", "mean_class_accuracy", "mAP"}
    assert evaluator.with_model(model) == evaluator
    six = dataclasses.replace(evaluator, classes=(*NAMES, "a", "b", "c"))
    metrics = six.metrics(measured(six, model, records, data(num_classes=6)))
    assert metrics["top1_top5_mean"] == (metrics["top1"] + metrics["top5"]) / 2


def test_candidates_are_compared_within_each_clip(model, records, expected):
    evaluator = MultipleChoiceEvaluator(zero_shot_encoder(model, ENSEMBLE))
    rows = measured(evaluator, model, records, data(num_classes=4))
    np.testing.assert_allclose(rows.output[[0, 2], :3], softmax(expected[[0, 2], :3]), atol=1e-4)
    np.testing.assert_allclose(rows.output[1], softmax(expected[1]), atol=1e-4)
    assert rows.output[[0, 2], 3].tolist() == [0, 0]
    right = (rows.output.argmax(axis=1) == np.arange(3)).mean()
    assert evaluator.metrics(rows) == {"accuracy": pytest.approx(100 * right)}


def test_several_right_candidates_are_found_by_probabilities_over_each_clip(model, records):
    evaluator = MultipleChoiceEvaluator(zero_shot_encoder(model, ENSEMBLE))
    labels = ((0, 1), (), (1,))
    several = [
        dataclasses.replace(record, label=label, captions=NAMES)
        for record, label in zip(records, labels, strict=True)
    ]
    rows = measured(evaluator, model, several, data(num_classes=3, multi_label=True))
    first, second = rows.output[:, 0], rows.output[:, 1]
    rank = 1 + (first > first[0]).sum()
    order = np.argsort(-second)
    places = np.sort([order.tolist().index(0), order.tolist().index(2)]) + 1
    precision = np.mean([1 / places[0], 2 / places[1]])
    # The third name is nobody's.
    assert evaluator.metrics(rows) == {"mAP": pytest.approx(100 * (1 / rank + precision) / 2)}


def test_predictions_are_the_probabilities_of_names(model, records, expected):
    classifier = zero_shot_classifier(model, NAMES, ENSEMBLE)
    paths = [record.path for record in records]
    found = list(
        prediction.predict_clips([*paths, "none.mp4"], model, data(), classifier=classifier)
    )
    assert isinstance(found.pop(), FailedClip)
    probabilities = np.stack([one.probabilities for one in found])
    np.testing.assert_allclose(probabilities, softmax(expected[:, :3]), atol=1e-4)


def loaded(model):
    """The same as `ivj.load` gives it."""
    return Model(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})


def test_a_loaded_model_predicts_classes_that_are_named(model, records, expected):
    paths = [record.path for record in records]
    named = {"classes": iter(NAMES), "prompts": ENSEMBLE.templates, "segments": SEGMENTS}
    *found, failed = loaded(model).predict([*paths, "none.mp4"], **named)
    assert isinstance(failed, FailedClip)
    for scores, row in zip(found, softmax(expected[:, :3]), strict=True):
        assert [name for name, _ in scores] == [NAMES[i] for i in np.argsort(-row)]
        assert dict(scores) == pytest.approx(dict(zip(NAMES, row, strict=True)), abs=1e-4)
    named |= {"classes": NAMES, "top": 1}
    assert loaded(model).predict(paths[0], **named) == found[0][:1]
    assert loaded(model).predict(paths[0], classes=["a ring"]) == [("a ring", 1.0)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": "red"}, TypeError, "classes: expected a list of names, found str"),
        ({"classes": ["red", 3]}, TypeError, r"classes\[1\]: expected a name, found int"),
        ({"classes": []}, ValueError, "classes: expected at least one name, found none"),
        ({"classes": ["red", "red "]}, ValueError, r"than 'red', which classes\[0\] has"),
        ({"classes": ["red", "!"]}, ValueError, "found 1 without: '!'"),
        ({"classes": ["red"], "prompts": "a ring"}, ValueError, "prompts: .*found 'a ring'"),
        ({"classes": ["red"], "prompts": []}, ValueError, "prompts: expected at least one"),
        ({"prompts": "the {}"}, ValueError, r"prompts: expected classes .*pass classes=\["),
        ({}, ValueError, r"found Stage2, .*model\.predict\(clips, classes=\["),
    ],
)
def test_what_names_no_classes_is_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        loaded(model).predict("none.mp4", **options)


def test_models_without_texts_classify_nothing_by_names(encoder, model):
    with pytest.raises(ValueError, match="compares clips with texts, found VideoViT"):
        zero_shot_encoder(encoder, ENSEMBLE)
    with pytest.raises(ValueError, match="compares clips with texts, found VideoViT"):
        loaded(encoder).predict("none.mp4", classes=NAMES)
    without = dataclasses.replace(
        model, preprocessing=dataclasses.replace(model.preprocessing, text=None)
    )
    with pytest.raises(ValueError, match="vocabulary of its texts|with its tokenizer"):
        zero_shot_encoder(without, ENSEMBLE)
    with pytest.raises(ValueError, match=r"found Stage2.*predict --classes=FILE"):
        prediction.class_names(model)
