"""`internvideo-jax evaluate` with a config of retrieval: clips with captions by a dual encoder."""

import argparse
import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.environment import printable
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference
from internvideo_jax.launch.common.missing_clips import check_missing
from internvideo_jax.launch.common.progress import Progress

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.annotations.retrieval import RetrievalClips
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.evaluation.retrieval.evaluator import RetrievalEvaluator
    from internvideo_jax.evaluation.retrieval.options import RetrievalOptions
    from internvideo_jax.evaluation.retrieval.store import RetrievalStore
    from internvideo_jax.evaluation.runner import Rows
    from internvideo_jax.saved_model import SavedModel

# What is left of a measurement that was interrupted, in its output.
PARTIAL = "partial"


def evaluate_retrieval(
    args: argparse.Namespace, overrides: Sequence[str], config: "ConfigDict"
) -> int:
    """Runs the command; returns the exit code: 1 if clips failed, unless they may."""
    from internvideo_jax.convert.files.checksums import Checksums
    from internvideo_jax.data.annotations.retrieval import read_retrieval
    from internvideo_jax.data.sources.clips import RecordSource
    from internvideo_jax.evaluation import result_card
    from internvideo_jax.evaluation.retrieval.evaluator import retrieval_evaluator, view_config
    from internvideo_jax.evaluation.retrieval.options import RetrievalData, RetrievalOptions
    from internvideo_jax.evaluation.retrieval.store import RetrievalStore

    if set(config) != {"retrieval", "eval_data"} or args.classes is not None:
        raise arguments.UsageError(
            f"expected a config of retrieval and eval_data, without --classes, found"
            f" {', '.join(config)}; start from configs/eval/retrieval.py"
        )
    options = from_dict(RetrievalOptions, config.retrieval.to_dict(), "config.retrieval")
    data = from_dict(RetrievalData, config.eval_data.to_dict(), "config.eval_data")
    if data.annotations is None:
        raise arguments.UsageError(
            "expected a list of videos with captions, found none; set"
            " --config.eval_data.annotations=FILE"
        )
    clips = read_retrieval(
        data.annotations,
        root=data.root,
        videos=data.videos,
        caption=data.caption,
        max_seconds=data.max_seconds,
    )
    records = _present(clips, args.allow_missing)
    _check_captions(records, options, data.annotations)
    loaded = inference.load_model(args)
    model, directory = loaded.model, Path(loaded.directory)
    evaluator = retrieval_evaluator(model, options)
    views = view_config(model, data)
    if not (args.output / PARTIAL).is_dir():
        arguments.new_output_dir(args.output)
    source = RecordSource(records)
    made_with = {
        "model": loaded.digest,
        "dtype": loaded.dtype,
        "retrieval": to_dict(options) | {"rerank": evaluator.num_candidates},
        "views": to_dict(views),
        "clips": f"{source.digest()} {source.fingerprint()}",
    }
    store = RetrievalStore(args.output / PARTIAL, made_with, loaded.dtype)
    print(
        f"{len(records)} clips, {views.segments} x {views.num_frames} frames of"
        f" {views.image_size}x{views.image_size}",
        file=sys.stderr,
    )
    inference.announce_frames(model, views.num_frames)

    started = time.perf_counter()
    with Checksums() as checksums:
        # In the background: the weights are gigabytes.
        model_files, annotations = result_card.directory_files(directory), Path(data.annotations)
        for file in (annotations, *model_files):
            checksums.start(file)
        rows = _measure(evaluator, model, views, records, store, args)
        sums = checksums.wait([annotations, *model_files])
    retrieved = rows.output
    shown = [records[number] for number in rows.columns["index"].tolist()]
    report = evaluator.report(rows, shown, (), args.output)
    if retrieved.num_cut:
        print(
            f"{retrieved.num_cut} of {len(retrieved.texts)} texts are longer than"
            f" {evaluator.tokenizer.max_length} tokens: their ends were not read",
            file=sys.stderr,
        )
    unread = [(records[number], why) for number, why in rows.errors.items()]
    card = {
        "task": evaluator.task,
        "metrics": evaluator.metrics(rows),
        "merging": evaluator.merging,
        "clips": rows.num_clips,
        "texts": len(retrieved.texts),
        "texts_cut": retrieved.num_cut,
        "pairs_reranked": retrieved.num_pairs,
        "failed": [{"id": clip.id, "path": clip.path, "reason": why} for clip, why in unread],
        "missing": list(clips.missing),
        "listed_several_times": list(clips.repeated),
        "retrieval": to_dict(options)
        | {
            "rerank": evaluator.num_candidates,
            "max_text_length": evaluator.tokenizer.max_length,
            "prompts": None,
        },
        "views": {
            name: getattr(views, name)
            for name in ("num_frames", "image_size", "segments", "crops", "sampling")
        },
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "annotations": {
            **{name: value for name, value in to_dict(data).items() if name != "num_frames"},
            "annotations": annotations.name,
            "sha256": sums.pop(annotations),
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
    share = f" of {len(records)}" if unread else ""
    print(f"{rows.num_clips}{share} clips in {card['seconds']:.1f} s -> {args.output}")
    inference.print_failures([(clip.path, why) for clip, why in unread])
    return 1 if unread and not args.allow_failed else 0


def _present(clips: "RetrievalClips", allow_missing: bool) -> "list[ClipRecord]":
    """The clips that are on disk.

    Raises:
      UsageError: some are not, and must be; lists them.
    """
    if clips.repeated:
        print(
            f"{len(clips.repeated)} videos are listed several times: each is one, with all of its"
            " captions",
            file=sys.stderr,
        )
    missing = set(clips.missing)
    check_missing(
        clips.missing,
        len(clips.records),
        may_miss=allow_missing,
        consequence=", among which less has to be told apart",
    )
    return [record for record in clips.records if record.id not in missing]


def _check_captions(
    records: "Sequence[ClipRecord]", options: "RetrievalOptions", annotations: str
) -> None:
    """Finds out before clips are encoded whether all captions have words.

    Raises:
      UsageError: some have none; names the list, the captions and their clips.
    """
    from internvideo_jax.evaluation.retrieval.texts import texts_of_clips

    captions = [record.captions for record in records]
    try:
        texts_of_clips(captions, options, [record.id for record in records])
    except ValueError as error:
        raise arguments.UsageError(f"{annotations}: {error}") from None


def _measure(
    evaluator: "RetrievalEvaluator",
    model: "SavedModel",
    views: "DataConfig",
    records: "Sequence[ClipRecord]",
    store: "RetrievalStore",
    args: argparse.Namespace,
) -> "Rows":
    """Encodes clips and texts, and compares them; what the store has is not done again.

    Raises:
      UsageError: none of the clips can be read, or a batch does not fit into memory.
    """
    from internvideo_jax.evaluation.retrieval.store import encode_clips

    errors = inference.memory_errors(args.batch_size, views.num_frames)
    with errors, Progress(len(records), "clip", "encoding") as progress:
        rows = encode_clips(
            evaluator,
            model.variables,
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
    numbers = rows.columns["index"].tolist()
    with Progress(len(numbers), "clip", "reranking") as progress:

        def known(place: int, texts: np.ndarray) -> np.ndarray | None:
            scores = store.scores(numbers[place], texts)
            progress.update(scores is not None)
            return scores

        def keep(place: int, texts: np.ndarray, scores: np.ndarray) -> None:
            store.put_scores(numbers[place], texts, scores)
            progress.update()

        return evaluator.complete(rows, model.variables, finished=known, on_scores=keep)
