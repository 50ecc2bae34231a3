"""`internvideo-jax evaluate` with a config of retrieval: clips with captions by a dual encoder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference
from internvideo_jax.launch.common.measurement import Measurement
from internvideo_jax.launch.common.missing_clips import check_list, check_missing
from internvideo_jax.launch.common.progress import Progress

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.annotations.retrieval import RetrievalClips
    from internvideo_jax.evaluation.retrieval.evaluator import RetrievalEvaluator
    from internvideo_jax.evaluation.retrieval.options import RetrievalOptions
    from internvideo_jax.evaluation.retrieval.store import RetrievalStore
    from internvideo_jax.evaluation.runner import Rows
    from internvideo_jax.saved_model import SavedModel


def evaluate_retrieval(
    args: argparse.Namespace, overrides: Sequence[str], config: "ConfigDict"
) -> int:
    """Runs the command; returns the exit code: 1 if clips failed, unless they may."""
    from internvideo_jax.data.annotations.retrieval import read_retrieval
    from internvideo_jax.data.sources.clips import RecordSource
    from internvideo_jax.evaluation.retrieval.evaluator import retrieval_evaluator, view_config
    from internvideo_jax.evaluation.retrieval.options import RetrievalData, RetrievalOptions

    if set(config) != {"retrieval", "eval_data"}:
        raise arguments.UsageError(
            f"expected a config of retrieval and eval_data, found {', '.join(config)}; start from"
            " configs/eval/retrieval.py"
        )
    if args.classes is not None:
        raise arguments.UsageError(
            "--classes: expected no classes where clips have captions; leave it out, or take"
            " configs/eval/zero_shot.py"
        )
    options = from_dict(RetrievalOptions, config.retrieval.to_dict(), "config.retrieval")
    data = from_dict(RetrievalData, config.eval_data.to_dict(), "config.eval_data")
    if data.annotations is None:
        raise arguments.UsageError(
            "expected a list of videos with captions, found none; set"
            " --config.eval_data.annotations=FILE"
        )
    check_list(data.annotations, args.config)
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
    evaluator = retrieval_evaluator(loaded.model, options)
    views = view_config(loaded.model, data)
    source = RecordSource(records)
    measurement = Measurement(
        args, overrides, loaded, views, records, clips.missing, Path(data.annotations)
    )
    store = measurement.open_store(
        {
            "retrieval": to_dict(options) | {"rerank": evaluator.num_candidates},
            "clips": f"{source.digest()} {source.fingerprint()}",
        }
    )
    measurement.announce()
    measured = measurement.run(
        evaluator, store, lambda rows: _complete(evaluator, loaded.model, rows, store), {}
    )
    retrieved = measured.rows.output
    return measurement.finish(
        evaluator,
        measured,
        (),
        num_texts=len(retrieved.texts),
        num_cut=retrieved.num_cut,
        max_text_length=evaluator.tokenizer.max_length,
        annotations={n: value for n, value in to_dict(data).items() if n != "num_frames"},
        entries={
            "pairs_reranked": retrieved.num_pairs,
            "listed_several_times": list(clips.repeated),
            "retrieval": to_dict(options)
            | {
                "rerank": evaluator.num_candidates,
                "max_text_length": evaluator.tokenizer.max_length,
                "prompts": None,
            },
        },
    )


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


def _complete(
    evaluator: "RetrievalEvaluator", model: "SavedModel", rows: "Rows", store: "RetrievalStore"
) -> "Rows":
    """Encodes texts and compares clips with them; scores that the store has are not made again."""
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
