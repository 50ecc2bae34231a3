"""What `extract` leaves in its output folder: a file of features per video, and a summary."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.files import atomic_file
from internvideo_jax.launch import arguments

if TYPE_CHECKING:
    from internvideo_jax.evaluation.features import ClipFeatures

SUMMARY_FILE = "summary.json"


def output_names(videos: Sequence[str]) -> dict[str, Path]:
    """Where the features of each video go, relative to the output folder.

    The name keeps its extension and the folders below the deepest one that holds all the videos, so
    that no two videos share it.
    """
    common = os.path.commonpath([os.path.dirname(video) for video in videos])
    return {video: Path(os.path.relpath(video, common) + ".npz") for video in videos}


@dataclasses.dataclass(frozen=True)
class Run:
    """What must agree for a file of an earlier run to be kept.

    Attributes:
      model: name of the model's folder.
      model_digest: of its description, which names the weights it was converted from.
      kind: "pooled" or "tokens".
      frames: frames per video.
      dtype: what the model computed in.
    """

    model: str
    model_digest: str
    kind: str
    frames: int
    dtype: str

    def is_finished(self, video: str, target: Path) -> bool:
        """Whether `target` holds this run's features of `video`.

        Raises:
          UsageError: it was made with other settings, or of another video.
        """
        source = self._source(target)
        if source not in (None, video):
            raise arguments.UsageError(
                f"{target}: expected features of {video}, found those of {source}; name a new"
                " --output"
            )
        return source is not None

    def check_folder(self, output: Path) -> None:
        """Looks at one of the files that earlier runs left in a folder.

        Raises:
          UsageError: it was made with other settings.
        """
        # Each run has looked before it wrote, hence all agree.
        next((True for path in output.rglob("*.npz") if self._source(path) is not None), None)

    def _source(self, target: Path) -> str | None:
        """The video whose features `target` holds; None if it is absent or damaged."""
        try:
            with np.load(target) as file:
                fields = {name: file[name] for name in file.files}
            found = Run(
                model=str(fields["model"]),
                model_digest=str(fields["model_digest"]),
                kind=str(fields["kind"]),
                frames=len(fields["frame_indices"]),
                dtype=str(fields["dtype"]),
            )
            source = str(fields["source"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        if found != self:
            raise arguments.UsageError(
                f"{target}: expected features of {self}, found some of {found};"
                " resume with the settings of the first run or name a new --output"
            )
        return source

    def __str__(self) -> str:
        return (
            f"model {self.model} ({self.model_digest}), kind {self.kind}, {self.frames} frames,"
            f" {self.dtype}"
        )


@dataclasses.dataclass
class Summary:
    """What is to be told of an output folder, earlier runs included.

    Attributes:
      finished_before: videos whose features an earlier run has written.
      repeated_frames: videos with fewer frames than the model takes.
      damaged_frames: videos in which the decoder met damage.
      failed: videos without features: "source" and "reason".
    """

    finished_before: int = 0
    repeated_frames: list[str] = dataclasses.field(default_factory=list)
    damaged_frames: list[str] = dataclasses.field(default_factory=list)
    failed: list[dict[str, str]] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, output: Path, todo: Mapping[str, Path]) -> "Summary":
        """What earlier runs have left, but for the videos to do now, whose files `todo` names."""
        try:
            earlier = json.loads((output / SUMMARY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = {}
        return cls(
            len(set(output.rglob("*.npz")) - set(todo.values())),
            [source for source in earlier.get("repeated_frames", []) if source not in todo],
            [source for source in earlier.get("damaged_frames", []) if source not in todo],
            [item for item in earlier.get("failed", []) if item["source"] not in todo],
        )

    def note(self, result: "ClipFeatures") -> list[str]:
        """Records what is odd about a clip; returns lines about it."""
        clip, notes = result.clip, []
        if clip.repeated_frames:
            self.repeated_frames.append(clip.source)
            notes.append(
                f"{clip.source}: {clip.num_frames} frames for {len(clip.frame_indices)}:"
                f" {clip.repeated_frames} repeated"
            )
        if clip.damaged_frames:
            self.damaged_frames.append(clip.source)
            notes.append(
                f"{clip.source}: damaged: the decoder met errors in {clip.damaged_frames} frames"
                " on the way to those that the model saw; see what a player makes of it"
            )
        return notes


def write_features(target: Path, result: "ClipFeatures", run: Run) -> None:
    """Writes one video's features; the file is whole or absent.

    Raises:
      UsageError: it cannot be written.
    """
    clip = result.clip
    fields: dict[str, Any] = {
        "features": result.features,
        "grid": np.array(result.grid),
        "frame_indices": clip.frame_indices,
        "timestamps": clip.timestamps,
        "repeated_frames": clip.repeated_frames,
        "damaged_frames": clip.damaged_frames,
        "num_frames": clip.num_frames,
        "source": clip.source,
        "kind": run.kind,
        "dtype": run.dtype,
        "model": run.model,
        "model_digest": run.model_digest,
    }
    try:
        with atomic_file(target) as temporary, temporary.open("wb") as file:
            np.savez(file, **fields)
    except OSError as error:
        raise arguments.UsageError(
            f"{target}: {error.strerror}; make room and run again with --resume"
        ) from error
