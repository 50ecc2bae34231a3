import json
import math

import numpy as np
import pytest

from internvideo_jax.configs.demo.retrieval import MEASUREMENTS
from internvideo_jax.launch.demonstration import baseline, retrieval, runs


def write_result(folder, metrics, clips_of_texts, clips):
    folder.mkdir(parents=True)
    card = {"metrics": metrics, "clips": clips}
    (folder / "result.json").write_text(json.dumps(card))
    lines = (json.dumps({"text": "a", "clips": right}) for right in clips_of_texts)
    (folder / "texts.jsonl").write_text("\n".join(lines))


def test_results_are_those_of_the_texts_with_their_chance(tmp_path):
    metrics = {"similarity/t2a_r1": 40.0, "similarity/a2t_r1": 50.0, "dsl/t2a_r1": 45.0}
    write_result(tmp_path / "x", metrics, [["a", "b"], ["c"], ["d", "e", "f"]], 8)
    found = retrieval.read_result("sounds", tmp_path / "x")
    assert found.recalls == {"similarity": 40.0, "dsl": 45.0}
    assert found.chance == pytest.approx(100 * 2 / 8)
    rows = retrieval.cells([found])
    assert rows[1][1:] == ["8", "40.0", "45.0", "", "25.0"]


def test_only_what_is_missing_is_measured(tmp_path, monkeypatch, capsys):
    directions = {"video": "t2v", "audio": "t2a", "audio_video": "t2av"}
    asked = []

    def evaluate(argv):
        asked.append(argv)
        name = argv[1].removeprefix("--config=configs/eval/retrieval.py:demo,").partition(",")[0]
        metric = f"similarity/{directions[MEASUREMENTS[name].medium]}_r1"
        write_result(tmp_path / name, {metric: 10.0}, [["a"]], 4)
        return 0

    monkeypatch.setattr(retrieval.evaluate, "main", evaluate)
    write_result(tmp_path / "crossed", {"similarity/t2v_r1": 20.0}, [["a"]], 4)
    found = {r.name: r for r in retrieval.measure("fast", tmp_path / "m", tmp_path)}
    assert list(found) == list(MEASUREMENTS)
    assert found["crossed"].recalls["similarity"] == 20
    assert len(asked) == len(MEASUREMENTS) - 1
    assert f"--config=configs/eval/retrieval.py:demo,clips_1,fast --output={tmp_path}" in (
        capsys.readouterr().out
    )
    monkeypatch.setattr(retrieval.evaluate, "main", lambda argv: 2)
    with pytest.raises(SystemExit):
        retrieval.measure("fast", tmp_path / "m", tmp_path / "new")


def test_constants_are_the_losses_of_whoever_sees_nothing(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*special, *map(str, range(34))]))
    run = runs.recipe(
        "stage 2", "fast", {"annotations": "clips.jsonl", "vocabulary": str(vocabulary)}
    )
    ((stage, rows),) = run.kinds().values()
    text = np.zeros((rows, 17), np.int64)
    # [CLS] and padding are not guessed; the others are equally frequent.
    text[:, :4] = [2, 7, 8, 3]
    losses = baseline.constant_cross_modal_losses(stage, [{"text": text}] * 3, 2)
    third = math.log(3) - 2 / 3 * math.log(2)
    expected = {"vtc": math.log(8), "atc": math.log(8), "avtc": math.log(8), "vtm": third}
    for term, value in {**expected, "mlm": math.log(3)}.items():
        assert losses[f"audio_video/{term}"] == pytest.approx(value)
    assert losses["loss"] == pytest.approx(sum(expected.values()) + math.log(3))
