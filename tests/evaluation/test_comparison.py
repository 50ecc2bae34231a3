"""Clips compared with texts by loaded models: by stage 2, and by dual encoders that only embed."""

import dataclasses
import sys

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import internvideo_jax as ivj
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.video import VideoReader
from internvideo_jax.data.pipeline import eval_batches
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.evaluation import progress, runner
from internvideo_jax.evaluation.comparison import FailedClips
from internvideo_jax.evaluation.features import FailedClip
from internvideo_jax.evaluation.retrieval.evaluator import retrieval_evaluator, view_config
from internvideo_jax.evaluation.retrieval.options import RetrievalData, RetrievalOptions
from internvideo_jax.loading import Model
from internvideo_jax.models import abstract_variables
from internvideo_jax.models.dual_encoder import DualEncoder
from internvideo_jax.preprocessing import Preprocessing, TextPreprocessing, VideoPreprocessing
from tests.small_models import WORDS, noise_like, save_stage2, write_words

COLORS = ("red", "green", "blue", "cyan")
TEXTS = tuple(f"The {color} ring moves left." for color in COLORS)


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    width: int = 6


@flax.struct.dataclass
class Embedded:
    embedding: jax.Array


class Plain(DualEncoder):
    """Embeds clips by their mean colours and texts by their mean words, and fuses nothing."""

    config: PlainConfig

    def setup(self):
        self.look = nn.Dense(self.config.width)
        self.words = nn.Embed(len(WORDS), self.config.width)

    def __call__(self, video, ids):
        return self.encode_video(video), self.encode_text(ids)

    def encode_video(self, video, *, deterministic=True):
        return Embedded(self.look(video.mean((1, 2, 3))))

    def encode_text(self, ids, mask=None, *, deterministic=True):
        return Embedded(self.words(ids).mean(1))

    def bounded_temperature(self):
        return jnp.float32(0.1)

    def example_inputs(self, batch_size=1):
        video = jax.ShapeDtypeStruct((batch_size, 4, 32, 32, 3), jnp.float32)
        return video, jax.ShapeDtypeStruct((batch_size, 16), jnp.int32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    module = Plain(PlainConfig())
    return Model(
        module,
        noise_like(abstract_variables(module), 0),
        module.config,
        Preprocessing(
            VideoPreprocessing(image_size=32, num_frames=4),
            text=TextPreprocessing("wordpiece", ("vocab.txt",), 16),
        ),
        {},
        tokenizer_files={"vocab.txt": write_words(tmp_path_factory.mktemp("words"))},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ivj.load(save_stage2(tmp_path_factory.mktemp("stage2")))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{color}.mp4" for color in COLORS]
    for number, path in enumerate(paths):
        frames = scenes.render(scenes.Scene("ring", path.stem, "left"), 9 + number, size=48)
        scenes.write_video(path, frames)
    return paths


def measured(model, videos, options):
    """What a measurement finds of clips that each have one of `TEXTS`."""
    records = [
        ClipRecord(path.stem, str(path), captions=(text,))
        for path, text in zip(videos, TEXTS, strict=True)
    ]
    evaluator, views = retrieval_evaluator(model, options), view_config(model, RetrievalData())
    batches = eval_batches(views, evaluator.fields, batch_size=3, source=RecordSource(records))
    rows = runner.collect(evaluator, model.variables, batches)
    rows = evaluator.complete(rows, model.variables)
    return rows.output, evaluator.metrics(rows)


def test_embeddings_are_those_of_the_module(model, videos):
    with VideoReader(videos[1]) as reader:
        frames = reader.read(range(reader.num_frames))
    video, text = model.encode_video([videos[0], frames]), model.encode_text(TEXTS[:3])
    assert (video.shape, text.shape) == ((2, 6), (3, 6))
    assert video.dtype == text.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(video, axis=1), 1, atol=1e-6)
    ids, mask = model.tokenizer([f"the {color} ring moves left" for color in COLORS[:3]])
    cosines = jax.jit(model.module.apply)(model.variables, model.preprocess(videos[:2]), ids, mask)
    found = model.similarity(video, text)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cosines, atol=2e-6)
    # Clips or texts mixed up would show.
    assert np.abs(found - found[::-1]).max() > 1e-3
    assert np.abs(found - found[:, ::-1]).max() > 1e-3
    np.testing.assert_array_equal(model.encode_video(videos[0]), video[:1])
    np.testing.assert_array_equal(model.encode_text(TEXTS[0]), text[:1])
    np.testing.assert_array_equal(model.encode_video(iter(videos), batch_size=3)[:1], video[:1])
    assert model.encode_video(frames[None], num_frames=8).shape == (1, 6)


def test_scores_are_those_that_are_evaluated(model, videos):
    options = RetrievalOptions(rerank=2)
    expected, _ = measured(model, videos, options)
    video, text = model.encode_video(videos), model.encode_text(TEXTS)
    scores = model.similarity(video, text)
    np.testing.assert_allclose(scores, expected.scores["similarity"].of_texts, atol=2e-6)
    logits = expected.scores["rerank"].of_media.T
    is_candidate = np.isfinite(logits)
    assert is_candidate.sum(axis=0).tolist() == [2] * 4
    found = model.rerank(videos, TEXTS, scores, top=2, batch_size=3)
    np.testing.assert_array_equal(np.isfinite(found), is_candidate)
    np.testing.assert_allclose(found[is_candidate], logits[is_candidate], atol=2e-5)
    everything = model.rerank(videos, TEXTS)
    assert np.isfinite(everything).all()
    np.testing.assert_allclose(everything[is_candidate], logits[is_candidate], atol=2e-5)


def test_clips_that_are_no_candidates_are_not_read(model, videos, tmp_path):
    absent = tmp_path / "absent.mp4"
    clips = [absent, videos[0], absent, videos[1], absent]
    scores = np.array([[-3.0], [2.0], [-3.0], [1.0], [-4.0]], np.float32)
    found = model.rerank(clips, TEXTS[0], scores, top=2, batch_size=1)
    assert np.isfinite(found[:, 0]).tolist() == [False, True, False, True, False]
    np.testing.assert_allclose(found[[1, 3]], model.rerank(videos[:2], TEXTS[0]), atol=1e-6)
    with pytest.raises(FailedClips, match="1 of 5 clips failed") as error:
        model.rerank(clips, TEXTS[0], scores, top=3)
    assert isinstance(error.value.results[0], FailedClip)
    np.testing.assert_array_equal(np.stack(error.value.results[1:]), found[1:])


def test_clips_that_fail_are_named_and_the_others_kept(model, videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    with pytest.raises(FailedClips, match=f"1 of 3 clips failed:\n  {broken}: ") as error:
        model.encode_video([videos[0], broken, videos[1]])
    first, failed, last = error.value.results
    assert failed.source == str(broken)
    np.testing.assert_array_equal(np.stack([first, last]), model.encode_video(videos[:2]))
    with pytest.raises(ValueError, match=f"^{broken}: expected"):
        model.encode_video(broken)
    variables = jax.tree.map(lambda x: x * np.nan, model.variables)
    endless = dataclasses.replace(model, variables=variables)
    with pytest.raises(FailedClips, match="4 of 4 clips.*\n.*NaN"):
        endless.encode_video(videos)


def test_case_and_punctuation_do_not_count_unless_asked_for(model, caplog):
    plain, shouted = model.encode_text(["the red ring", "The RED ring!"])
    np.testing.assert_array_equal(plain, shouted)
    kept = model.encode_text("the red ring .", clean=False)[0]
    assert np.abs(kept - plain).max() > 1e-3
    model.encode_text(["the red ring " * 9, "the ring"])
    assert "1 of 2 texts are longer than 16 tokens: their ends are not read" in caplog.text


def test_a_dual_encoder_that_fuses_nothing_is_compared_alike(plain, videos):
    expected, metrics = measured(plain, videos, RetrievalOptions())
    scores = plain.similarity(plain.encode_video(videos), plain.encode_text(TEXTS))
    np.testing.assert_allclose(scores, expected.scores["similarity"].of_texts, atol=1e-6)
    assert {name.split("/")[0] for name in metrics} == {"similarity", "dsl"}
    assert expected.num_pairs == 0
    with pytest.raises(ValueError, match=r"matches them with nothing; set rerank to 0"):
        retrieval_evaluator(plain, RetrievalOptions(rerank=4))
    with pytest.raises(ValueError, match="audio tower"):
        retrieval_evaluator(plain, RetrievalOptions(medium="audio"))
    with pytest.raises(ValueError, match=r"expected a model of stage 2.*found Plain"):
        plain.rerank(videos, TEXTS)


def test_few_programs_serve_all_lists(plain, monkeypatch):
    frames = np.zeros((9, 5, 40, 40, 3), np.uint8)
    clips = list(frames + np.arange(9, dtype=np.uint8)[:, None, None, None, None])
    platforms = {"cpu": 1, "gpu": 4}
    rows = runner.rows_per_program
    for platform, expected in platforms.items():
        monkeypatch.setattr(runner, "rows_per_program", lambda n, _, on=platform: rows(n, on))
        runner._forward.clear_cache()
        for count in range(1, 10):
            assert plain.encode_video(clips[:count]).shape == (count, 6)
        # Rows in powers of two up to the batch size; a CPU takes one after the other.
        assert runner._forward._cache_size() == expected


def test_long_lists_show_their_progress(plain, monkeypatch, capsys):
    clips = list(np.zeros((5, 2, 40, 40, 3), np.uint8))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    plain.encode_video(clips)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    plain.encode_video(clips)
    assert "/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode_video([]), ValueError, "at least one clip, found none"),
        (lambda m: m.encode_text([]), ValueError, "at least one text, found none"),
        (lambda m: m.encode_text(3), TypeError, "a text or a list of texts, found int"),
        (lambda m: m.encode_text(["a", 3]), TypeError, "text 1: expected a text, found int"),
        (lambda m: m.encode_text(["a", "?!"]), ValueError, r"found 1 without: '\?!'"),
        (
            lambda m: m.encode_video("a.mp4", batch_size=0),
            ValueError,
            "batch_size: expected a whole",
        ),
        (lambda m: m.rerank("a.mp4", "a", top=0), ValueError, "top: expected a whole"),
        (lambda m: m.rerank([], "a"), ValueError, "at least one clip, found none"),
        (
            lambda m: m.rerank("a.mp4", ["a", "b"], np.zeros((2, 1))),
            ValueError,
            r"scores of 1 clips with 2 texts, found shape \(2, 1\)",
        ),
        (
            lambda m: m.similarity(np.zeros(6), np.zeros((1, 6))),
            ValueError,
            r"found shapes \(6,\) and \(1, 6\)",
        ),
        (lambda m: m.similarity(np.zeros((1, 6)), np.zeros((1, 5))), ValueError, "the same model"),
        (
            lambda m: m.similarity(np.full((1, 6), np.nan), np.zeros((1, 6))),
            ValueError,
            "finite embeddings of media",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def test_other_models_say_what_they_are(encoder, model):
    loaded = Model(**{f.name: getattr(encoder, f.name) for f in dataclasses.fields(encoder)})
    for method in (loaded.encode_video, loaded.encode_text):
        with pytest.raises(ValueError, match=r"compares clips with texts, found VideoViT.*encode"):
            method("a")
    wordless = dataclasses.replace(model.preprocessing, text=None)
    with pytest.raises(ValueError, match=r"found Stage2 without; convert it again.*--tokenizer"):
        dataclasses.replace(model, preprocessing=wordless).encode_text("a ring")
