"""The command `evaluate` with configs of retrieval."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from internvideo_jax.data.synthetic import scenes
from internvideo_jax.evaluation.retrieval.store import RetrievalStore
from internvideo_jax.launch import evaluate
from tests import small_models
from tests.small_models import clip_stage2, save_stage2

CLIPS = [
    ("ring", "blue", "left"), ("square", "red", "right"), ("cross", "green", "up"),
    ("circle", "cyan", "down"), ("ring", "red", "up"),
]  # fmt: skip

MAX_TEXT_LENGTH = clip_stage2("visual").text.max_length


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_stage2(tmp_path_factory.mktemp("stage2"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for shape, color, motion in CLIPS:
        path = folder / f"{color}_{shape}.mp4"
        scenes.write_video(path, scenes.render(scenes.Scene(shape, color, motion), 9, 48))
    return folder


@pytest.fixture
def items():
    return [
        {"video": f"{color}_{shape}.mp4", "caption": [f"A {color} {shape}.", f"It moves {motion}"]}
        for shape, color, motion in CLIPS
    ]


@pytest.fixture
def run(model, videos, tmp_path):
    def call(items, *options, output="result", config="custom"):
        path = tmp_path / "list.json"
        path.write_text(json.dumps(items), encoding="utf-8")
        return evaluate.main([
            f"--model={model}", f"--config=configs/eval/retrieval.py:{config}",
            f"--config.eval_data.annotations={path}", f"--config.eval_data.root={videos}",
            f"--output={tmp_path / output}", "--batch_size=2", *options,
        ])  # fmt: skip

    return call


def card_of(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def lines_of(folder):
    return [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]


def check_best(lines, kind):
    """The best clips of each text are in the order of these scores."""
    for line in lines:
        names, scores = zip(*line["best"], strict=True)
        assert list(scores) == sorted(scores, reverse=True)
        (own,) = line["clips"]
        if own in names:
            assert names.index(own) + 1 == line["ranks"][kind]


def test_a_result_and_all_it_depends_on(run, items, tmp_path, capsys):
    assert run(items, "--config.retrieval.rerank=3") == 0
    output = tmp_path / "result"
    names = sorted(path.name for path in output.iterdir())
    assert names == ["contact_sheet.png", "result.json", "result.md", "texts.jsonl"]
    card = card_of(output)
    kinds = {name.split("/")[0] for name in card["metrics"]}
    assert kinds == {"similarity", "dsl", "rerank"}
    assert {"rerank/t2v_r1", "similarity/v2t_median_rank", "dsl/r_mean"} <= set(card["metrics"])
    assert (card["clips"], card["texts"]) == (5, 10)
    # At most so many of each text and of each clip.
    assert 15 <= card["pairs_reranked"] <= 5 * 3 + 10 * 3
    assert card["retrieval"]["rerank"] == 3
    assert card["retrieval"]["max_text_length"] == 16
    assert card["views"]["sampling"] == "intervals"
    assert len(card["model"]["sha256"]) == len(card["annotations"]["sha256"]) == 64
    assert {"internvideo_jax", "commit"} <= card["versions"].keys()
    lines = lines_of(output)
    assert [line["text"] for line in lines][:2] == ["a blue ring", "it moves left"]
    ranks = np.array([line["ranks"]["rerank"] for line in lines])
    np.testing.assert_allclose(card["metrics"]["rerank/t2v_r1"], 100 * (ranks == 1).mean())
    assert [len(line["best"]) for line in lines] == [3] * 10
    check_best(lines, "rerank")
    text = (output / "result.md").read_text(encoding="utf-8")
    assert "| metric " in text
    assert "| model.sha256 |" in text
    assert "rerank" in capsys.readouterr().out


def test_segments_are_averaged_and_paragraphs_joined(run, items, tmp_path, capsys):
    options = ["--config.eval_data.segments=2", "--config.retrieval.rerank=0"]
    assert run(items, *options, "--config.retrieval.paragraphs=True") == 0
    card = card_of(tmp_path / "result")
    assert (card["texts"], card["pairs_reranked"], card["views"]["segments"]) == (5, 0, 2)
    assert "rerank/r_mean" not in card["metrics"]
    check_best(lines_of(tmp_path / "result"), "dsl")
    # Twelve words, the longest with letters of their own.
    assert card["texts_cut"] == 0
    assert run(items, *options, "--config.retrieval.max_text_length=4", output="cut") == 0
    assert card_of(tmp_path / "cut")["texts_cut"] == 10
    assert "10 of 10 texts are longer than 4 tokens" in capsys.readouterr().err


def test_an_interrupted_measurement_goes_on(run, items, tmp_path, monkeypatch, capsys):
    assert run(items) == 0
    expected = card_of(tmp_path / "result")["metrics"]
    put, done = RetrievalStore.put_scores, []

    def until_the_third(self, number, texts, scores):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        put(self, number, texts, scores)

    monkeypatch.setattr(RetrievalStore, "put_scores", until_the_third)
    assert run(items, output="again") == 130
    assert not (tmp_path / "again" / "result.json").exists()
    # Of what was encoded and scored before, only what is damaged is asked for again.
    partial = tmp_path / "again" / "partial"
    clip, scores = partial / "clip-0000001.npz", partial / f"scores-{done[0]:07d}.npz"
    clip.write_bytes(clip.read_bytes()[:-20])
    scores.write_bytes(b"")
    put_clip, encoded, scored = RetrievalStore.put_clip, [], []
    monkeypatch.setattr(
        RetrievalStore,
        "put_scores",
        lambda self, number, texts, scores: (
            scored.append(number) or put(self, number, texts, scores)
        ),
    )
    monkeypatch.setattr(
        RetrievalStore,
        "put_clip",
        lambda self, number, *arrays: encoded.append(number) or put_clip(self, number, *arrays),
    )
    assert run(items, "--config.retrieval.rerank_by=dsl", output="again") == 2
    message = capsys.readouterr().err
    assert 'retrieval.rerank_by: expected "dsl", found "similarity"' in message
    assert run(items, output="again") == 0
    message = capsys.readouterr().err
    assert f"{clip} is damaged" in message
    assert f"{scores} is damaged" in message
    assert encoded == [1]
    assert set(scored) & set(done) == {done[0]}
    assert card_of(tmp_path / "again")["metrics"] == expected
    assert not (tmp_path / "again" / "partial").exists()


def test_missing_videos_are_listed_and_refused_unless_they_may_be(run, items, tmp_path, capsys):
    items.append({"video": "gone.mp4", "caption": "a gone ring"})
    items.append({"video": items[0]["video"], "caption": "another caption"})
    assert run(items) == 2
    assert "gone.mp4" in capsys.readouterr().err
    assert not (tmp_path / "result").exists()
    assert run(items, "--allow_missing", "--config.retrieval.rerank=0") == 0
    card = card_of(tmp_path / "result")
    assert (card["missing"], card["clips"], card["texts"]) == (["gone.mp4"], 5, 11)
    assert card["listed_several_times"] == [items[0]["video"]]


def test_where_all_videos_are_missing_the_root_is_asked_for(run, items, tmp_path, capsys):
    items[:] = [{"video": "gone.mp4", "caption": "a gone ring"}]
    assert run(items, "--allow_missing") == 2
    error = capsys.readouterr().err
    assert "1 of 1" in error
    assert "--config.eval_data.root" in error
    assert "--allow_missing" not in error


def test_clips_that_cannot_be_read_are_left_out_with_their_texts(
    run, items, videos, tmp_path, capsys
):
    (videos / "broken.mp4").write_bytes(b"no video" * 100)
    items.append({"video": "broken.mp4", "caption": "a broken ring"})
    options = ["--config.retrieval.rerank=0"]
    assert run(items, *options) == 1
    card = card_of(tmp_path / "result")
    assert [clip["id"] for clip in card["failed"]] == ["broken.mp4"]
    assert "5 of 6 clips in" in capsys.readouterr().out
    assert (card["clips"], card["texts"]) == (5, 10)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        (f"max_text_length={MAX_TEXT_LENGTH + 1}", f"max_text_length={MAX_TEXT_LENGTH}"),
        ("max_text_length=2", "expected int from 3"),
    ],
)
def test_texts_longer_than_the_model_takes_are_refused_before_anything_is_made(
    option, remedy, run, items, tmp_path, capsys
):
    assert run(items, f"--config.retrieval.{option}") == 2
    message = capsys.readouterr().err
    assert remedy in message
    assert "config.retrieval.max_text_length" in message
    assert not (tmp_path / "result").exists()


def test_captions_without_words_are_refused_before_anything_is_made(run, items, tmp_path, capsys):
    items[1]["caption"].append("!!! ...")
    assert run(items) == 2
    message = capsys.readouterr().err
    for part in (str(tmp_path / "list.json"), "'!!! ...'", items[1]["video"]):
        assert part in message
    assert not (tmp_path / "result").exists()
    # As the text of a paragraph they add nothing.
    options = ["--config.retrieval.paragraphs=True", "--config.retrieval.rerank=0"]
    assert run(items, *options) == 0


def test_frames_that_the_model_cannot_take_are_refused_before_anything_is_made(
    run, items, tmp_path, monkeypatch, capsys
):
    config = clip_stage2("visual")
    encoder = dataclasses.replace(config.vision.encoder, tubelet_size=2)
    by_tubes = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, encoder=encoder)
    )
    monkeypatch.setattr(small_models, "clip_stage2", lambda medium: by_tubes)
    model = save_stage2(tmp_path)
    for count, expected in ((3, "take 2 or 4"), (0, "expected int from 1")):
        assert run(items, f"--model={model}", f"--config.eval_data.num_frames={count}") == 2
        message = capsys.readouterr().err
        assert "config.eval_data.num_frames" in message
        assert expected in message
        assert not (tmp_path / "result").exists()


def test_models_that_match_nothing_are_measured_by_embeddings(
    run, items, tmp_path, monkeypatch, capsys
):
    config = dataclasses.replace(clip_stage2("visual"), match_heads=())
    monkeypatch.setattr(small_models, "clip_stage2", lambda medium: config)
    model = save_stage2(tmp_path)
    assert run(items, f"--model={model}", "--config.retrieval.rerank=3") == 2
    assert "matches them with nothing; set rerank to 0" in capsys.readouterr().err
    assert run(items, f"--model={model}") == 0
    card = card_of(tmp_path / "result")
    assert (card["retrieval"]["rerank"], card["pairs_reranked"]) == (0, 0)
    assert {name.split("/")[0] for name in card["metrics"]} == {"similarity", "dsl"}


def test_one_of_several_processes_is_refused(run, items, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert run(items) == 2
    assert "expected one process, with any number of devices, found 4" in capsys.readouterr().err
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.retrieval.medium=audio"], "audio tower"),
        (["--config.eval_data.frames=4"], "did you mean"),
        (["--config.eval_data.max_seconds=-3.0"], "config.eval_data.max_seconds"),
        (["--config.eval_data.max_seconds=0.0"], "expected float from 0.001"),
        (["--class_names=names.txt"], "--classes"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, run, items, capsys):
    assert run(items, *options) == 2
    assert message in capsys.readouterr().err
