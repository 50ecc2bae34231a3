"""Texts that stand for classes: their names in the templates of an ensemble."""

import dataclasses
import os
import re
from collections.abc import Sequence

from internvideo_jax.data.prompts import action_prompts
from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.evaluation.zero_shot_options import ZeroShotOptions
from internvideo_jax.files import read_bytes

# Where the name goes in a template.
PLACE = "{}"
# Of a file of templates.
_MAX_BYTES = 2**20
# Names without words that an error lists.
_MAX_LISTED = 5
# Between "Apply" and "Eye", and what else stands for a space in names of classes.
_SEAMS = re.compile(r"(?<=[a-z])(?=[A-Z])|[_+]+")


@dataclasses.dataclass(frozen=True)
class PromptEnsemble:
    """Turns names into texts.

    Attributes:
      templates: each has `PLACE` once.
      clean_texts: whether texts lose case and punctuation, as upstream's do.
      split_names: whether names become words (`split_name`).

    Raises:
      ValueError: no templates, or one without a place for the name, or with several.
    """

    templates: tuple[str, ...]
    clean_texts: bool = True
    split_names: bool = False

    def __post_init__(self) -> None:
        if not self.templates:
            raise ValueError("prompts: expected at least one template, found none")
        for template in self.templates:
            if template.count(PLACE) != 1:
                raise ValueError(
                    f"prompts: expected templates with {PLACE} where the name goes, once in each,"
                    f" found {template!r}"
                )

    @classmethod
    def of(cls, options: ZeroShotOptions) -> "PromptEnsemble":
        """The ensemble of a config; errors as of `read_templates`."""
        return cls(read_templates(options.prompts), options.clean_texts, options.split_names)

    def texts(self, names: Sequence[str]) -> list[str]:
        """The texts of names: all templates of the first, then all of the second and so on.

        Raises:
          ValueError: texts that have no words once they are cleaned; lists the first names.

        Source: upstream's `InternVideo2/multi_modality/dataset/ret_dataset.py`, which cleans texts
        once the names are in them.
        """
        texts = []
        wordless: dict[str, None] = {}
        for name in names:
            shown = split_name(name) if self.split_names else name
            for template in self.templates:
                text = template.replace(PLACE, shown)
                text = clean_caption(text) if self.clean_texts else text
                if not text.strip():
                    wordless[name] = None
                texts.append(text)
        if wordless:
            listed = ", ".join(map(repr, list(wordless)[:_MAX_LISTED]))
            raise ValueError(
                f"expected names with words, found {len(wordless)} without: {listed}; correct them"
            )
        return texts


def read_templates(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """The templates that are meant.

    Args:
      prompts: templates, one or several; or a UTF-8 file of them, one on each line; or the name of
        a data set with published ones.

    Raises:
      ValueError: a text that is none of these, or another kind of file.
    """
    if not isinstance(prompts, str):
        return tuple(prompts)
    if PLACE in prompts:
        return (prompts,)
    if not os.path.exists(prompts):
        try:
            return action_prompts(prompts)
        except ValueError as error:
            raise ValueError(
                f"prompts: {error}; or name a file with a template on each line, or write one, such"
                f' as "a video of {PLACE}"'
            ) from None
    try:
        lines = read_bytes(prompts, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{prompts}: expected UTF-8 text, found {error.reason}") from None
    return tuple(line.strip() for line in lines if line.strip())


def split_name(name: str) -> str:
    """A name as words: "ApplyEyeMakeup", "apply_eye" and "adult+female" have them run together."""
    return _SEAMS.sub(" ", name)
