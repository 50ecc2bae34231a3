"""Templates of the texts that name actions, as they are published."""

from internvideo_jax.config import nearest_name

# Source: `kinetics_templates_action_clip` of upstream's
# `InternVideo2/multi_modality/dataset/text_prompt.py`.
_ACTIONS = (
    "a photo of action {}",
    "a picture of action {}",
    "Human action of {}",
    "{}, an action",
    "{} this is an action",
    "{}, a video of action",
    "Playing action of {}",
    "{}",
    "Playing a kind of action, {}",
    "Doing a kind of action, {}",
    "Look, the human is {}",
    "Can you recognize the action of {}?",
    "Video classification of {}",
    "A video of {}",
    "The man is {}",
    "The woman is {}",
)
_DATASETS = ("k400", "k600", "k700", "ucf101", "hmdb51", "mit", "activitynet", "ssv2")


def action_prompts(dataset: str) -> tuple[str, ...]:
    """The templates of a data set of actions; "{}" stands for the name of a class.

    Raises:
      ValueError: none are published for it.
    """
    if dataset not in _DATASETS:
        raise ValueError(
            f"expected a data set with published prompts ({', '.join(_DATASETS)}), found"
            f" {dataset!r}{nearest_name(dataset, _DATASETS)}"
        )
    return _ACTIONS
