"""What `evaluate` does of every measurement of clips beside texts: from its store to its card."""

import argparse
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvideo_jax.config import to_dict
from internvideo_jax.environment import printable
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference
from internvideo_jax.launch.common.progress import Progress

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.evaluation.retrieval.store import RetrievalStore
    from internvideo_jax.evaluation.runner import Evaluator, Rows

# What is left of a measurement that was interrupted, in its output.
_PARTIAL = "partial"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came out.

    Attributes:
      rows: of the clips that could be read, compared with the texts.
      sums: sha256 of the list, if it is a file, and of the model's files.
      seconds: how long it took.
    """

    rows: "Rows"
    sums: dict[Path, str]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measurement whose options have been read.

    Attributes:
      args: of the command.
      overrides: its arguments that change the config.
      loaded: the model.
      views: how it is shown clips.
      records: the clips, all of which are on disk.
      missing: ids of the list's others.
      annotations: the list, a file or a folder.
    """

    args: argparse.Namespace
    overrides: Sequence[str]
    loaded: inference.Loaded
    views: "DataConfig"
    records: "Sequence[ClipRecord]"
    missing: Sequence[str]
    annotations: Path

    def open_store(self, made_with: Mapping[str, Any]) -> "RetrievalStore":
        """Makes the output, or goes on with what an interrupted command left there.

        Args:
          made_with: what must be the same then, besides the model, its dtype and the views.

        Raises:
          UsageError, ValueError: the output is there already, or of another measurement.
        """
        from internvideo_jax.evaluation.retrieval.store import RetrievalStore

        partial = self.args.output / _PARTIAL
        if not partial.is_dir():
            arguments.new_output_dir(self.args.output)
        of_all = {
            "model": self.loaded.digest,
            "dtype": self.loaded.dtype,
            "views": to_dict(self.views),
        }
        return RetrievalStore(partial, {**of_all, **made_with}, self.loaded.dtype)

    def announce(self, more: str = "") -> None:
        """Says what is measured."""
        print(
            f"{len(self.records)} clips, {self.views.segments} x {self.views.num_frames} frames of"
            f" {self.views.image_size}x{self.views.image_size}{more}",
            file=sys.stderr,
        )
        inference.announce_frames(self.loaded.model, self.views.num_frames)

    def run(
        self,
        evaluator: "Evaluator",
        store: "RetrievalStore",
        complete: "Callable[[Rows], Rows]",
        labels: Mapping[str, Any],
    ) -> Measured:
        """Encodes clips, but for those that the store has, and compares them with texts.

        Args:
          evaluator: what is measured.
          store: from `open_store`.
          complete: compares what was encoded.
          labels: fields of the views that say what labels are.

        Raises:
          UsageError: none of the clips can be read, or a batch does not fit into memory.
        """
        from internvideo_jax.convert.files.checksums import Checksums
        from internvideo_jax.evaluation import result_card

        started = time.perf_counter()
        with Checksums() as checksums:
            # In the background: the weights are gigabytes.
            files = result_card.directory_files(Path(self.loaded.directory))
            if self.annotations.is_file():
                files = [self.annotations, *files]
            for file in files:
                checksums.start(file)
            rows = complete(self._encode(evaluator, store, labels))
            return Measured(rows, checksums.wait(files), time.perf_counter() - started)

    def _encode(
        self, evaluator: "Evaluator", store: "RetrievalStore", labels: Mapping[str, Any]
    ) -> "Rows":
        from internvideo_jax.evaluation.retrieval.store import encode_clips

        errors = inference.memory_errors(self.args.batch_size, self.views.num_frames)
        with errors, Progress(len(self.records), "clip", "encoding") as progress:
            rows = encode_clips(
                evaluator,
                self.loaded.model.variables,
                dataclasses.replace(self.views, **labels),
                self.records,
                store,
                batch_size=self.args.batch_size,
                num_threads=self.args.num_threads,
                on_clips=progress.update,
            )
        if not rows.num_clips:
            inference.print_failures(self._unread(rows))
            raise arguments.UsageError(f"none of the {len(self.records)} clips can be read")
        return rows

    def _unread(self, rows: "Rows") -> list[tuple[str, str]]:
        return [(self.records[number].path, reason) for number, reason in rows.errors.items()]

    def finish(
        self,
        evaluator: "Evaluator",
        measured: Measured,
        names: Sequence[str],
        *,
        num_texts: int,
        num_cut: int,
        max_text_length: int,
        annotations: Mapping[str, Any],
        entries: Mapping[str, Any],
    ) -> int:
        """Writes report and card, and says what came out.

        Args:
          evaluator: what was measured.
          measured: from `run`.
          names: of the classes, if there are any.
          num_texts: how many texts there were,
          num_cut: and how many of them longer than the model takes,
          max_text_length: which are so many tokens.
          annotations: what the card says of the list; its name and checksum are added.
          entries: further ones of the card.

        Returns:
          The exit code: 1 if clips failed, unless they may.
        """
        from internvideo_jax.evaluation import result_card

        args, loaded, rows = self.args, self.loaded, measured.rows
        shown = [self.records[number] for number in rows.columns["index"].tolist()]
        report = evaluator.report(rows, shown, names, args.output)
        if num_cut:
            print(
                f"{num_cut} of {num_texts} texts are longer than {max_text_length} tokens: their"
                " ends were not read",
                file=sys.stderr,
            )
        sums = dict(measured.sums)
        list_sum = {"sha256": sums.pop(self.annotations)} if self.annotations in sums else {}
        card = {
            "task": evaluator.task,
            "metrics": evaluator.metrics(rows),
            "merging": evaluator.merging,
            "clips": rows.num_clips,
            "texts": num_texts,
            "texts_cut": num_cut,
            "failed": [
                {"id": self.records[n].id, "path": self.records[n].path, "reason": reason}
                for n, reason in rows.errors.items()
            ],
            "missing": list(self.missing),
            **entries,
            "views": {
                name: getattr(self.views, name)
                for name in ("num_frames", "image_size", "segments", "crops", "sampling")
            },
            "preprocessing": dataclasses.asdict(loaded.model.preprocessing),
            "annotations": {**annotations, "annotations": self.annotations.name, **list_sum},
            "model": result_card.model_entry(
                loaded.model, loaded.name, Path(loaded.directory), sums
            )
            | {"digest": loaded.digest},
            "config": {"file": args.config, "overrides": list(self.overrides)},
            "seed": None,  # Nothing is drawn.
            "batch_size": args.batch_size,
            "seconds": round(measured.seconds, 2),
            **result_card.environment(loaded.dtype),
        }
        # Last: a folder with a card is complete.
        result_card.write_card(args.output, card)
        shutil.rmtree(args.output / _PARTIAL)
        print(printable(report))
        share = f" of {len(self.records)}" if rows.errors else ""
        print(f"{rows.num_clips}{share} clips in {card['seconds']:.1f} s -> {args.output}")
        inference.print_failures(self._unread(rows))
        return 1 if rows.errors and not args.allow_failed else 0
