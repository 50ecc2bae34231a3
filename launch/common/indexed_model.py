"""The model that an index was made with, which alone can search it or add to it."""

from argparse import Namespace
from typing import TYPE_CHECKING

from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference

if TYPE_CHECKING:
    from internvideo_jax.search.index_file import IndexSettings


def load_indexed_model(args: Namespace, settings: "IndexSettings") -> inference.Loaded:
    """Loads the model of an index, from where `--model` says that it is or where it was.

    Raises:
      UsageError: what is named is another, or it is not where it was.
    """
    from internvideo_jax.convert.library import model_directory

    args.model = args.model or settings.model
    try:
        digest = inference.model_digest(model_directory(args.model))
    except ValueError as error:
        raise arguments.UsageError(
            f"expected the model that the index was made with, found: {error}; say with --model"
            " where it is"
        ) from error
    if digest != settings.model_digest:
        raise arguments.UsageError(
            f"expected the model that the index was made with, {settings.model}"
            f" ({settings.model_digest}), found {args.model} ({digest}), whose vectors are others;"
            " say with --model where that one is, or make another index"
        )
    return inference.load_model(args)
