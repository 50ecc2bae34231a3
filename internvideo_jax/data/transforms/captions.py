"""What happens to captions before they become tokens."""

import re

_DELETED = str.maketrans({**dict.fromkeys(",.'!?\"()*#:;~", ""), "-": " ", "/": " "})
_BLANKS = re.compile(r"\s{2,}")


def clean_caption(caption: str, max_words: int | None = None) -> str:
    """A caption without case and punctuation, as the released stage-2 models have read them.

    Args:
      caption: any text.
      max_words: how many of its words to keep; None is all.

    Source: `pre_text` of upstream's `InternVideo2/multi_modality/dataset/utils.py`.
    """
    text = caption.lower().translate(_DELETED).replace("<person>", "person")
    text = _BLANKS.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
