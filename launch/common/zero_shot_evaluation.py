"""`internvideo-jax evaluate` with a config of zero-shot classification or multiple choice."""

import argparse
import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.environment import printable
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference
from internvideo_jax.launch.common.missing_clips import check_missing
from internvideo_jax.launch.common.progress import Progress
from internvideo_jax.launch.common.retrieval_evaluation import PARTIAL

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.evaluation.prompt_ensemble import PromptEnsemble
    from internvideo_jax.evaluation.retrieval.store import RetrievalStore
    from internvideo_jax.evaluation.runner import Evaluator, Rows
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
    from internvideo_jax.convert.files.checksums import Checksums
    from internvideo_jax.data.sources.clips import RecordSource
    from internvideo_jax.evaluation import result_card
    from internvideo_jax.evaluation.prompt_ensemble import PromptEnsemble
    from internvideo_jax.evaluation.retrieval.evaluator import view_config
    from internvideo_jax.evaluation.retrieval.options import RetrievalData
    from internvideo_jax.evaluation.retrieval.store import RetrievalStore
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
    model, directory = loaded.model, Path(loaded.directory)
    encoder = zero_shot_encoder(model, ensemble)
    evaluator = clips.evaluator(encoder)
    views = view_config(model, RetrievalData(num_frames=data.num_frames, segments=data.segments))
    if not (args.output / PARTIAL).is_dir():
        arguments.new_output_dir(args.output)
    # Labels and texts are not among it: what is kept are embeddings of clips.
    made_with = {
        "model": loaded.digest,
        "dtype": loaded.dtype,
        "views": to_dict(views),
        "clips": RecordSource(clips.records).digest(),
    }
    store = RetrievalStore(args.output / PARTIAL, made_with, loaded.dtype)
    what = "candidates" if clips.is_choice else "classes"
    print(
        f"{len(clips.records)} clips, {views.segments} x {views.num_frames} frames of"
        f" {views.image_size}x{views.image_size}; {len(clips.names)} {what} in"
        f" {len(ensemble.templates)} prompts",
        file=sys.stderr,
    )
    inference.announce_frames(model, views.num_frames)

    started = time.perf_counter()
    with Checksums() as checksums:
        # In the background: the weights are gigabytes.
        model_files, annotations = (
            result_card.directory_files(directory),
            Path(str(data.annotations)),
        )
        lists = [annotations] if annotations.is_file() else []
        for file in (*lists, *model_files):
            checksums.start(file)
        views = dataclasses.replace(views, **clips.labels)
        rows = _measure(evaluator, model.variables, views, clips.records, store, args)
        sums = checksums.wait([*lists, *model_files])
    shown = [clips.records[number] for number in rows.columns["index"].tolist()]
    report = evaluator.report(rows, shown, clips.names, args.output)
    num_cut = encoder.tokenizer.count_cut(texts)
    if num_cut:
        print(
            f"{num_cut} of {len(texts)} texts are longer than {encoder.tokenizer.max_length}"
            " tokens: their ends were not read",
            file=sys.stderr,
        )
    unread = [(clips.records[number], why) for number, why in rows.errors.items()]
    card = {
        "task": evaluator.task,
        "metrics": evaluator.metrics(rows),
        "merging": evaluator.merging,
        "clips": rows.num_clips,
        what: len(clips.names) if clips.is_choice else list(clips.names),
        "texts": len(texts),
        "texts_cut": num_cut,
        "failed": [{"id": clip.id, "path": clip.path, "reason": why} for clip, why in unread],
        "missing": list(clips.missing),
        kind: to_dict(options)
        | {"prompts": list(ensemble.templates), "max_text_length": encoder.tokenizer.max_length},
        "views": {
            name: getattr(views, name)
            for name in ("num_frames", "image_size", "segments", "crops", "sampling")
        },
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "annotations": {
            "annotations": annotations.name,
            "root": data.root,
            "sha256": sums.pop(lists[0]) if lists else RecordSource(clips.records).fingerprint(),
        },
        "model": result_card.model_entry(model, loaded.name, directory, sums)
        | {"digest": loaded.digest},
        "config": {"file": args.config, "overrides": list(overrides)},
        "seed": None,  # Nothing is drawn.
        "batch_size": args.batch_size,
        "seconds": round(time.perf_counter() - started, 2),
        **result_card.environment(loaded.dtype),
    }
    # Last: a folder with a card is complete.
    result_card.write_card(args.output, card)
    shutil.rmtree(args.output / PARTIAL)
    print(printable(report))
    share = f" of {len(clips.records)}" if unread else ""
    print(f"{rows.num_clips}{share} clips in {card['seconds']:.1f} s -> {args.output}")
    inference.print_failures([(clip.path, why) for clip, why in unread])
    return 1 if unread and not args.allow_failed else 0


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


def _measure(
    evaluator: "Evaluator",
    variables: Any,
    views: "DataConfig",
    records: "Sequence[ClipRecord]",
    store: "RetrievalStore",
    args: argparse.Namespace,
) -> "Rows":
    """Encodes clips, but for those that the store has, and compares them with texts.

    Raises:
      UsageError: none of the clips can be read, or a batch does not fit into memory.
    """
    from internvideo_jax.evaluation.retrieval.store import encode_clips

    errors = inference.memory_errors(args.batch_size, views.num_frames)
    with errors, Progress(len(records), "clip", "encoding") as progress:
        rows = encode_clips(
            evaluator,
            variables,
            views,
            records,
            store,
            batch_size=args.batch_size,
            num_threads=args.num_threads,
            on_clips=progress.update,
        )
    if not rows.num_clips:
        inference.print_failures([(records[n].path, why) for n, why in rows.errors.items()])
        raise arguments.UsageError(f"none of the {len(records)} clips can be read")
    return evaluator.complete(rows, variables)
