"""What a complete run leaves."""

import json

from internvideo_jax.training.outputs import final_metrics


def test_the_last_metrics_are_those_of_the_last_step_without_times(tmp_path):
    lines = [
        {"step": 4, "loss": 2.0, "eval/top1": 7.0},
        {"step": 8, "loss": 1.0, "learning_rate": 0.1, "seconds_per_step": 0.5},
        {"step": 8, "eval/top1": 9.0, "eval/loss": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert final_metrics(tmp_path) == {"loss": 1.0, "eval/top1": 9.0}
    assert final_metrics(tmp_path / "absent") == {}
