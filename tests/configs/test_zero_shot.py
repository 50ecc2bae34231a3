"""The benchmarks of zero-shot classification and multiple choice."""

import re

import pytest

from internvideo_jax.config import from_dict
from internvideo_jax.configs.demo import common
from internvideo_jax.configs.demo import zero_shot as demo
from internvideo_jax.configs.eval import multiple_choice, zero_shot
from internvideo_jax.data.synthetic import prompts
from internvideo_jax.data.synthetic.world import (
    MOTIONS,
    NUM_LOOKS,
    WorldConfig,
    draw_contents,
    find_world,
)
from internvideo_jax.evaluation.prompt_ensemble import PromptEnsemble
from internvideo_jax.evaluation.zero_shot_options import ChoiceData, ZeroShotData, ZeroShotOptions


@pytest.mark.parametrize(
    ("name", "num_frames", "num_prompts", "split_names"),
    [
        ("k400", 8, 16, False),
        ("k600", 8, 16, False),
        ("k700", 8, 16, False),
        ("ucf101", 8, 16, True),
        ("hmdb51", 8, 16, True),
        ("mit", 8, 16, True),
        ("activitynet", 8, 16, False),
        ("ssv2", 8, 16, False),
        ("charades", 8, 1, False),
        ("custom", None, 1, False),
    ],
)
def test_benchmarks_are_measured_as_upstream_does(name, num_frames, num_prompts, split_names):
    config = zero_shot.get_config(name)
    options = from_dict(ZeroShotOptions, config.zero_shot.to_dict())
    data = from_dict(ZeroShotData, config.eval_data.to_dict())
    ensemble = PromptEnsemble.of(options)
    assert (data.num_frames, data.segments, data.classes) == (num_frames, 1, None)
    assert (len(ensemble.templates), ensemble.split_names) == (num_prompts, split_names)
    assert ensemble.clean_texts
    assert name in zero_shot.BENCHMARKS


def test_candidates_stand_alone():
    for name, num_frames in {"ssv2": 8, "charades": 8, "custom": None}.items():
        config = multiple_choice.get_config(name)
        options = from_dict(ZeroShotOptions, config.multiple_choice.to_dict())
        assert PromptEnsemble.of(options).texts(["A B"]) == ["a b"]
        assert from_dict(ChoiceData, config.eval_data.to_dict()).num_frames == num_frames


@pytest.mark.parametrize(
    ("get_config", "name", "message"),
    [
        (zero_shot.get_config, "k40", "did you mean 'k400'"),
        (zero_shot.get_config, "demo,look", "did you mean 'looks'"),
        (zero_shot.get_config, "demo,looks,small", "recipes: full, fast"),
        (zero_shot.get_config, "k400,looks", "found 'k400,looks'"),
        (multiple_choice.get_config, "ssv", "did you mean 'ssv2'"),
    ],
)
def test_an_unknown_benchmark_is_refused(get_config, name, message):
    with pytest.raises(ValueError, match=message):
        get_config(name)


@pytest.mark.parametrize(("name", "list_name"), [("motions", "test"), ("looks", "test_looks")])
def test_the_demo_is_asked_in_sentences_that_its_captions_have(
    name, list_name, tmp_path, monkeypatch
):
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path))
    config = zero_shot.get_config(f"demo,{name},fast")
    data = from_dict(ZeroShotData, config.eval_data.to_dict())
    world = find_world(common.SIZES["fast"].world, tmp_path / "demo")
    assert data.annotations == str(world.directory / f"{list_name}.jsonl")
    assert len(data.classes) == {"motions": len(MOTIONS), "looks": NUM_LOOKS}[name]
    measurement = demo.MEASUREMENTS[name]
    options = from_dict(ZeroShotOptions, config.zero_shot.to_dict())
    assert PromptEnsemble.of(options).templates == measurement.templates
    assert len(set(measurement.templates)) == len(measurement.templates)
    # With the name of its class, each is what a caption may say.
    contents = draw_contents(WorldConfig(), "crossed")[: 5 * len(MOTIONS)]
    for content in contents:
        own = {
            "motions": prompts.motion_names()[MOTIONS.index(content.motion)],
            "looks": prompts.look_names()[content.look],
        }[name]
        assert own in data.classes
        caption = _caption(content)
        assert own in caption
        template = caption.replace(own, "{}")
        shape = re.sub("|".join(_OTHERS), "*", template)
        assert shape in {re.sub("|".join(_OTHERS), "*", text) for text in measurement.templates}


_OTHERS = sorted(
    [*prompts.motion_names(), *prompts.look_names(), "plain", "gradient", "checkerboard", "hum",
     "buzz", "beep"],
    key=len, reverse=True,
)  # fmt: skip


def _caption(content):
    """The first of its captions that names the look in one piece."""

    class Draws:
        def integers(self, count):
            return 0

    return content.caption(Draws())
