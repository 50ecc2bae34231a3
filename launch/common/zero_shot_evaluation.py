"""`internvideo-jax evaluate` with a config of zero-shot classification or multiple choice."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference
from internvideo_jax.launch.common.measurement import Measurement
from internvideo_jax.launch.common.missing_clips import check_list, check_missing

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.evaluation.prompt_ensemble import PromptEnsemble
    from internvideo_jax.evaluation.runner import Evaluator
    from internvideo_jax.evaluation.zero_shot import ZeroShotEncoder
    from internvideo_jax.evaluation.zero_shot_options import ChoiceData

KINDS = ("zero_shot", "multiple_choice")


class _Clips(NamedTuple):
    """What is measured.

    Attributes:
      records: clips that are on disk.
      missing: ids of those that are not.
      names: of classes, or all different candidates: what becomes texts.
      labels: fields of a `DataConfig` that say what labels are.
      is_choice: whether each clip has candidates of its own.
    """

    records: "Sequence[ClipRecord]"
    missing: Sequence[str]
    names: Sequence[str]
    labels: Mapping[str, Any]
    is_choice: bool

    def evaluator(self, encoder: "ZeroShotEncoder") -> "Evaluator":
        """What measures them."""
        from internvideo_jax.evaluation.multiple_choice import MultipleChoiceEvaluator
        from internvideo_jax.evaluation.zero_shot import ZeroShotEvaluator

        if self.is_choice:
            return MultipleChoiceEvaluator(encoder)
        return ZeroShotEvaluator(encoder, tuple(self.names))


def evaluate_zero_shot(
    args: argparse.Namespace, overrides: Sequence[str], config: "ConfigDict"
) -> int:
    """Runs the command; returns the exit code: 1 if clips failed, unless they may."""
    from internvideo_jax.data.sources.clips import RecordSource
    from internvideo_jax.evaluation.prompt_ensemble import PromptEnsemble
    from internvideo_jax.evaluation.retrieval.evaluator import view_config
    from internvideo_jax.evaluation.retrieval.options import RetrievalData
    from internvideo_jax.evaluation.zero_shot import zero_shot_encoder
    from internvideo_jax.evaluation.zero_shot_options import ZeroShotOptions

    kind = next(kind for kind in KINDS if kind in config)
    if set(config) != {kind, "eval_data"}:
        raise arguments.UsageError(
            f"expected a config of {kind} and eval_data, found {', '.join(config)}; start from"
            f" configs/eval/{kind}.py"
        )
    options = from_dict(ZeroShotOptions, config[kind].to_dict(), f"config.{kind}")
    ensemble = PromptEnsemble.of(options)
    data, clips = _read(args, kind, config)
    texts = _checked_texts(ensemble, clips.names, str(data.annotations))
    loaded = inference.load_model(args)
    encoder = zero_shot_encoder(loaded.model, ensemble)
    evaluator = clips.evaluator(encoder)
    views = view_config(
        loaded.model, RetrievalData(num_frames=data.num_frames, segments=data.segments)
    )
    measurement = Measurement(
        args, overrides, loaded, views, clips.records, clips.missing, Path(str(data.annotations))
    )
    source = RecordSource(clips.records)
    # Labels and texts are not among it: what is kept are embeddings of clips.
    store = measurement.open_store({"clips": source.digest()})
    what = "candidates" if clips.is_choice else "classes"
    measurement.announce(f"; {len(clips.names)} {what} in {len(ensemble.templates)} prompts")
    measured = measurement.run(
        evaluator,
        store,
        lambda rows: evaluator.complete(rows, loaded.model.variables),
        clips.labels,
    )
    prompts = {"prompts": list(ensemble.templates), "max_text_length": encoder.tokenizer.max_length}
    return measurement.finish(
        evaluator,
        measured,
        clips.names,
        num_texts=len(texts),
        num_cut=encoder.tokenizer.count_cut(texts),
        max_text_length=encoder.tokenizer.max_length,
        # Of a folder, what is in it; of a file its own sum replaces that.
        annotations={"root": data.root, "sha256": source.fingerprint()},
        entries={
            what: len(clips.names) if clips.is_choice else list(clips.names),
            kind: to_dict(options) | prompts,
        },
    )


def _read(args: argparse.Namespace, kind: str, config: "ConfigDict") -> "tuple[ChoiceData, _Clips]":
    """What the config says of the clips, and those that are on disk.

    Raises:
      UsageError: no list is named, `--classes` for candidates, or clips are missing.
    """
    from internvideo_jax.data.annotations.choices import read_choices
    from internvideo_jax.data.annotations.classified import read_classified
    from internvideo_jax.evaluation.zero_shot_options import ChoiceData, ZeroShotData

    is_choice = kind == "multiple_choice"
    if is_choice and args.classes is not None:
        raise arguments.UsageError(
            "--classes: expected no classes where each clip has candidates of its own; leave it out"
        )
    data = from_dict(
        ChoiceData if is_choice else ZeroShotData, config.eval_data.to_dict(), "config.eval_data"
    )
    if data.annotations is None:
        raise arguments.UsageError(
            f"expected a list of clips with {'candidates' if is_choice else 'labels'}, found none;"
            " set --config.eval_data.annotations=FILE"
        )
    check_list(data.annotations, args.config)
    if isinstance(data, ZeroShotData):
        classes = data.classes if args.classes is None else args.classes
        known = read_classified(data.annotations, root=data.root, classes=classes)
        labels = {
            "num_classes": len(known.classes),
            "classes": known.classes,
            "multi_label": known.is_multi_label,
        }
        clips = _Clips(known.records, known.missing, known.classes, labels, is_choice)
    else:
        chosen = read_choices(data.annotations, root=data.root)
        labels = {"num_classes": chosen.most_candidates, "multi_label": chosen.is_multi_label}
        clips = _Clips(chosen.records, chosen.missing, chosen.candidates, labels, is_choice)
    missing, total = set(clips.missing), len({record.id for record in clips.records})
    check_missing(clips.missing, total, may_miss=args.allow_missing)
    return data, clips._replace(records=[r for r in clips.records if r.id not in missing])


def _checked_texts(ensemble: "PromptEnsemble", names: Sequence[str], annotations: str) -> list[str]:
    """All texts, before clips are encoded.

    Raises:
      UsageError: some have no words; names the list.
    """
    try:
        return ensemble.texts(names)
    except ValueError as error:
        raise arguments.UsageError(f"{annotations}: {error}") from None
