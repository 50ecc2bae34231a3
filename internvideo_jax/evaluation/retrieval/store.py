"""What is done of a measurement of clips with texts: encoded clips and scores, on disk.

Each clip has a file of its own, and another for its scores, so that a measurement that was
interrupted goes on where it was; files that are damaged are made again. Tokens are never in memory
all at once.
"""

import contextlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.data import pipeline
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.label import label_array
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.evaluation import runner
from internvideo_jax.evaluation.runner import Evaluator, PyTree, Rows
from internvideo_jax.files import atomic_file, read_json, write_json
from internvideo_jax.models.dual_encoder import Embedded

_log = logging.getLogger(__name__)

_DESCRIPTION = "made_with.json"
# What NumPy and zipfile raise for files that end early or hold something else.
_DAMAGES = (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, TypeError, ValueError)


class RetrievalStore:
    """Encoded clips and scores by the clips' numbers.

    Args:
      folder: where they lie; is made, or goes on.
      made_with: all that they depend on, ready for JSON.
      dtype: of tokens.

    Raises:
      ValueError: what lies there was made with something else, says with what; or its description
        cannot be read.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any], dtype: Any):
        self._folder, self._dtype = folder, np.dtype(dtype)
        wanted = json.loads(json.dumps(made_with))
        description = folder / _DESCRIPTION
        remedy = f"name another output, or remove {folder}"
        if not description.exists():
            if any(folder.glob("*.npz")):
                raise ValueError(
                    f"{description}: expected what the clips beside it were made with, found no"
                    f" such file; {remedy}"
                )
            write_json(description, wanted)
            return
        try:
            known = read_json(description)
        except ValueError as error:
            raise ValueError(f"{error}; {remedy}") from None
        differing = _differences(known, wanted)
        if differing:
            raise ValueError(
                f"{folder}: expected what is left of the same measurement, found that of another"
                f" ({'; '.join(differing)}); take the same options again, {remedy}"
            )

    def has_clip(self, number: int) -> bool:
        """Whether the clip has been looked at, and what became of it can be read.

        A file that is damaged is removed, with a warning.
        """
        return self._is_whole(self._file("clip", number))

    def put_clip(self, number: int, tokens: np.ndarray | None, embedding: np.ndarray) -> None:
        """Keeps tokens `[M, E]`, if there are any, and an embedding `[C]`."""
        own = {} if tokens is None else {"tokens": tokens.astype(self._dtype)}
        self._save("clip", number, {"embedding": embedding, **own})

    def put_error(self, number: int, reason: str) -> None:
        """Keeps why a clip cannot be read."""
        self._save("clip", number, {"error": np.array(reason)})

    def error(self, number: int) -> str | None:
        """Why a clip cannot be read; None if it was."""
        with _arrays(self._file("clip", number)) as file:
            return str(file["error"]) if "error" in file else None

    def embedding(self, number: int) -> np.ndarray:
        """The embedding of a clip."""
        with _arrays(self._file("clip", number)) as file:
            return np.asarray(file["embedding"])

    def tokens(self, number: int) -> np.ndarray:
        """The tokens of a clip."""
        with _arrays(self._file("clip", number)) as file:
            # NumPy does not know bfloat16 by name, but keeps its bytes.
            return np.asarray(file["tokens"]).view(self._dtype)

    def put_scores(self, number: int, texts: np.ndarray, scores: np.ndarray) -> None:
        """Keeps the scores of a clip with texts."""
        self._save("scores", number, {"texts": texts, "scores": scores})

    def scores(self, number: int, texts: np.ndarray) -> np.ndarray | None:
        """The scores of a clip with just these texts, if they are known.

        A file that is damaged is removed, with a warning.
        """
        path = self._file("scores", number)
        if not self._is_whole(path):
            return None
        with _arrays(path) as file:
            return np.asarray(file["scores"]) if np.array_equal(file["texts"], texts) else None

    def _file(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:07d}.npz"

    def _is_whole(self, path: Path) -> bool:
        if not path.exists():
            return False
        try:
            with zipfile.ZipFile(path) as file:
                is_whole = file.testzip() is None
        except _DAMAGES:
            is_whole = False
        if not is_whole:
            _log.warning("%s is damaged: it is removed, and made again", path)
            path.unlink()
        return is_whole

    def _save(self, kind: str, number: int, arrays: dict[str, Any]) -> None:
        with atomic_file(self._file(kind, number)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


@contextlib.contextmanager
def _arrays(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a file, each of which is read when it is asked for.

    Raises:
      ValueError: it cannot be read, or has no array that is asked for.
    """
    try:
        with np.load(path) as file:
            yield file
    except _DAMAGES as error:
        raise ValueError(
            f"{path}: expected arrays of a clip, found a damaged file ({error}); remove it and"
            " start the same command again, which makes it anew"
        ) from None


def _differences(known: Any, wanted: Mapping[str, Any], where: str = "") -> list[str]:
    """What of a description differs from the one that is wanted, option by option."""
    known = known if isinstance(known, dict) else {}
    differing = []
    for name in sorted({*known, *wanted}):
        found, expected = known.get(name), wanted.get(name)
        if isinstance(expected, dict):
            differing += _differences(found, expected, f"{where}{name}.")
        elif found != expected:
            differing.append(
                f"{where}{name}: expected {json.dumps(expected)}, found {json.dumps(found)}"
            )
    return differing


class StoredTokens(Sequence[np.ndarray]):
    """Tokens of clips, read when they are asked for; only where they were kept."""

    def __init__(self, store: RetrievalStore, numbers: Sequence[int]):
        self._store, self._numbers = store, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        return self._store.tokens(self._numbers[place])


def encode_clips(
    evaluator: Evaluator,
    variables: PyTree,
    data: DataConfig,
    records: Sequence[ClipRecord],
    store: RetrievalStore,
    *,
    batch_size: int,
    num_threads: int | None = None,
    on_clips: Callable[[int], object] = lambda count: None,
) -> Rows:
    """Encodes the clips that the store lacks; the views of each are averaged.

    Args:
      evaluator: what encodes them, to `Embedded`.
      variables: on a device or a mesh.
      data: what is shown of them.
      records: all clips.
      store: gets what becomes of them.
      batch_size: views that are held together at most, but at least those of one clip.
      num_threads: decoding threads.
      on_clips: told how many more have been looked at, also those that were before.

    Returns:
      A row for each clip that could be read, for `evaluator.complete`.
    """
    todo = [number for number in range(len(records)) if not store.has_clip(number)]
    on_clips(len(records) - len(todo))
    if todo:
        views = data.segments * data.crops
        batches = pipeline.eval_batches(
            data,
            evaluator.inputs,
            batch_size=max(batch_size // views, 1) * views,
            source=RecordSource([records[number] for number in todo]),
            num_threads=num_threads,
        )
        for batch, output in runner.run(evaluator, variables, batches):
            for first in range(0, len(batch["index"]), views):
                number = todo[batch["index"][first]]
                own = slice(first, first + views)
                if not batch["valid"][own].all():
                    store.put_error(number, str(batch["error"][first]))
                    continue
                tokens = None if output.tokens is None else output.tokens[own].mean(axis=0)
                store.put_clip(number, tokens, output.embedding[own].mean(axis=0))
            on_clips(len(batch["index"]) // views)
    errors = {n: error for n in range(len(records)) if (error := store.error(n)) is not None}
    readable = [number for number in range(len(records)) if number not in errors]
    columns = {"index": np.array(readable, np.int64)}
    if not readable:
        return Rows(columns, None, errors)
    found = [records[number] for number in readable]
    columns |= {name: _reference(name, found, data) for name in evaluator.references}
    embeddings = np.stack([store.embedding(number) for number in readable])
    return Rows(columns, Embedded(StoredTokens(store, readable), embeddings), errors)


def _reference(name: str, records: Sequence[ClipRecord], data: DataConfig) -> np.ndarray:
    """The field of that name of records, as batches have it."""
    if name == "label":
        return np.stack([label_array(record, data) for record in records])
    captions = np.empty(len(records), object)
    captions[:] = [record.captions for record in records]
    return captions
