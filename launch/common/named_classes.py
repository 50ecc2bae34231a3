"""Which classes `predict` tells apart: a classifier's own, or any that are named."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from internvideo_jax.launch import arguments

if TYPE_CHECKING:
    from internvideo_jax.evaluation.prediction import Classifier
    from internvideo_jax.loading import Model


def choose_classifier(args: Namespace, model: "Model") -> "tuple[Classifier, list[str] | None]":
    """What says which class clips show, by `--classes` and `--prompts`.

    Args:
      args: of the command.
      model: that does it.

    Returns:
      The classifier, and the templates of the texts that name its classes; None where the model has
      classes of its own.

    Raises:
      UsageError: prompts for a model that reads no texts, or no classes for one that does.
      ValueError: no such classes or prompts, or a model that classifies nothing.
      FileNotFoundError: there is no such file of classes.
    """
    from internvideo_jax.evaluation import prediction
    from internvideo_jax.models.dual_encoder import DualEncoder

    kind = type(model.module).__name__
    if isinstance(model.module, DualEncoder):
        if args.classes is None:
            raise arguments.UsageError(
                f"--classes: expected a file of what clips may show for {kind}, which compares them"
                " with texts, found none; write one, a name on each line"
            )
        return _zero_shot(args, model)
    if args.prompts is not None:
        raise arguments.UsageError(
            f"--prompts: expected a model that compares clips with texts, found {kind}; leave it"
            " out"
        )
    classifier = prediction.model_classifier(model, args.classes)
    if args.classes is None and model.classes is None:
        print(
            "the model does not name its classes: they are shown by their numbers; --classes=FILE"
            " names them",
            file=sys.stderr,
        )
    return classifier, None


def _zero_shot(args: Namespace, model: "Model") -> "tuple[Classifier, list[str] | None]":
    from internvideo_jax.class_names import read_class_names
    from internvideo_jax.evaluation.prompt_ensemble import PLACE, PromptEnsemble, read_templates
    from internvideo_jax.evaluation.zero_shot import zero_shot_classifier

    names = read_class_names(args.classes)
    if not names:
        raise arguments.UsageError(
            f"--classes={args.classes}: expected the names of classes, found an empty file"
        )
    templates = read_templates(PLACE if args.prompts is None else args.prompts)
    return zero_shot_classifier(model, names, PromptEnsemble(templates)), list(templates)
