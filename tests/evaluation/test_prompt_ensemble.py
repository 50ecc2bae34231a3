"""Names as texts."""

import pytest

from internvideo_jax.evaluation.prompt_ensemble import PromptEnsemble, read_templates
from internvideo_jax.evaluation.zero_shot_options import ZeroShotOptions


def test_all_texts_of_a_name_stand_together_and_are_cleaned_with_it():
    ensemble = PromptEnsemble(("A video of {}.", "{}, an action"))
    assert ensemble.texts(["opening bottle (not wine)", "Tai-Chi {0}"]) == [
        "a video of opening bottle not wine",
        "opening bottle not wine an action",
        "a video of tai chi {0}",
        "tai chi {0} an action",
    ]
    raw = PromptEnsemble(("A video of {}.",), clean_texts=False)
    assert raw.texts(["Tai-Chi"]) == ["A video of Tai-Chi."]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("brush_hair", "brush hair"),
        ("adult+female+singing", "adult female singing"),
        ("YoYo", "yo yo"),
        ("riding a bike", "riding a bike"),
    ],
)
def test_names_in_one_piece_become_words(name, words):
    assert PromptEnsemble(("{}",), split_names=True).texts([name]) == [words]


def test_prompts_are_templates_a_file_or_a_data_set(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a {}\n\n  the {} \n", encoding="utf-8")
    assert read_templates("a photo of {}") == ("a photo of {}",)
    assert read_templates(("a {}", "{}")) == ("a {}", "{}")
    assert read_templates(str(path)) == ("a {}", "the {}")
    assert len(read_templates("k400")) == 16
    assert PromptEnsemble.of(ZeroShotOptions()).texts(["x"]) == ["x"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("k40", r"prompts: .*'k40'.*a file with a template on each line"),
        ((), "at least one template"),
        (("a {}", "a video"), r"once in each, found 'a video'"),
        ("{} and {}", "once in each"),
    ],
)
def test_what_are_no_prompts_is_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        PromptEnsemble.of(ZeroShotOptions(prompts=prompts))


def test_names_without_words_are_listed():
    with pytest.raises(ValueError, match=r"found 1 without: '\?!'"):
        PromptEnsemble(("{}",)).texts(["a", "?!"])
