"""What `extract` leaves in its output folder: a file of features per video, and a summary."""

import dataclasses
import errno
import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from internvideo_jax.files import atomic_file, check_regular, is_full, no_space, read_json
from internvideo_jax.launch import arguments

if TYPE_CHECKING:
    from internvideo_jax.evaluation.features import ClipFeatures, FailedClip
    from internvideo_jax.evaluation.window_features import WindowFeatures

SUMMARY_FILE = "summary.json"


# Of a file's name; most systems have 255 at most, and temporary names are longer.
_MAX_NAME_BYTES = 200
# Options of a run that may be left out, and their types.
_OPTIONS: Mapping[str, Any] = {"layer": int, "crop": str, "window": float, "stride": float}
# Whatever of this is wrong with one file's name, others can be written.
_OF_ITS_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


def output_names(videos: Sequence[str]) -> dict[str, Path]:
    """Where the features of each video go, relative to the output folder.

    The name keeps its extension and the folders below the deepest one that holds all the videos, so
    that no two videos share it. The end of a very long name gives way to a checksum of all of it.
    """
    common = os.path.commonpath([os.path.dirname(video) for video in videos])
    names = {}
    for video in videos:
        folder, name = os.path.split(os.path.relpath(video, common))
        names[video] = Path(folder, f"{_shortened(name)}.npz")
    return names


def _shortened(name: str) -> str:
    data = os.fsencode(name)
    if len(data) <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    # Without half a character at the end.
    return f"{data[: _MAX_NAME_BYTES - 17].decode('utf-8', 'ignore')}~{digest}"


@dataclasses.dataclass(frozen=True)
class Run:
    """What must agree for a file of an earlier run to be kept.

    Attributes:
      model: the model as it was named, which need not agree.
      model_digest: of its description, which holds the checksums of its weights.
      kind: "pooled", "tokens" or "embedding".
      frames: frames per video or window.
      dtype: what the model computed in.
      layer: block whose tokens these are, if not the last.
      crop: what was shown of frames, if not as the model was made for.
      window: seconds of a window; None of whole videos.
      stride: seconds from one window to the next.
    """

    model: str = dataclasses.field(compare=False)
    model_digest: str
    kind: str
    frames: int
    dtype: str
    layer: int | None = None
    crop: str | None = None
    window: float | None = None
    stride: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What was chosen of the options that may be left out, by name."""
        given = {name: getattr(self, name) for name in _OPTIONS}
        return {name: value for name, value in given.items() if value is not None}

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
        # A damaged file leads its readers to any exception; whatever it is, it is made anew.
        try:
            check_regular(target)
            with zipfile.ZipFile(target) as members:
                # Ours are not compressed: more than the file has is none of them.
                if sum(m.file_size for m in members.infolist()) > target.stat().st_size:
                    return None
            with np.load(target, allow_pickle=False) as file:
                fields = {name: file[name] for name in file.files}
            found = Run(
                model=str(fields["model"]),
                model_digest=str(fields["model_digest"]),
                kind=str(fields["kind"]),
                frames=fields["frame_indices"].shape[-1],
                dtype=str(fields["dtype"]),
                **{name: kind(fields[name]) for name, kind in _OPTIONS.items() if name in fields},
            )
            source = str(fields["source"])
        except Exception:
            return None
        if found != self:
            raise arguments.UsageError(
                f"{target}: expected features of {self}, found some of {found};"
                " resume with the settings of the first run or name a new --output"
            )
        return source

    def __str__(self) -> str:
        options = [f", {name} {x}" for name, x in self.options.items()]
        return (
            f"model {self.model} ({self.model_digest}), kind {self.kind}, {self.frames} frames,"
            f" {self.dtype}{''.join(options)}"
        )


@dataclasses.dataclass
class Summary:
    """What is to be told of an output folder, earlier runs included.

    Attributes:
      finished_before: videos whose features an earlier run has written.
      repeated_frames: videos with fewer frames than the model takes.
      damaged_frames: videos in which the decoder met damage.
      failed: videos and windows without features: "source", "reason", and "start" and "end" of a
        window.
      shortened_names: files of features, in the folder, whose names are shorter than those of their
        videos, by video.
    """

    finished_before: int = 0
    repeated_frames: list[str] = dataclasses.field(default_factory=list)
    damaged_frames: list[str] = dataclasses.field(default_factory=list)
    failed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    shortened_names: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, output: Path, todo: Mapping[str, Path]) -> "Summary":
        """What earlier runs have left, but for the videos to do now, whose files `todo` names."""
        finished = len(set(output.rglob("*.npz")) - set(todo.values()))
        try:
            earlier = msgspec.convert(read_json(output / SUMMARY_FILE), cls)
        except (OSError, ValueError):
            earlier = cls()
        return cls(
            finished,
            [source for source in earlier.repeated_frames if source not in todo],
            [source for source in earlier.damaged_frames if source not in todo],
            [item for item in earlier.failed if item.get("source") not in todo],
            earlier.shortened_names,
        )

    def add_names(self, output: Path, targets: Mapping[str, Path]) -> None:
        """Records which videos' files have shorter names than these."""
        self.shortened_names |= {
            video: str(target.relative_to(output))
            for video, target in targets.items()
            if target.name != f"{os.path.basename(video)}.npz"
        }

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


def clip_fields(result: "ClipFeatures") -> dict[str, Any]:
    """What a file holds of a whole video."""
    clip = result.clip
    grid = {} if result.grid is None else {"grid": np.array(result.grid)}
    return {
        "features": result.features,
        **grid,
        "frame_indices": clip.frame_indices,
        "timestamps": clip.timestamps,
        "repeated_frames": clip.repeated_frames,
        "damaged_frames": clip.damaged_frames,
        "num_frames": clip.num_frames,
    }


def window_fields(results: "Sequence[WindowFeatures]") -> dict[str, Any]:
    """What a file holds of the windows of a video, of which there is at least one."""
    names = ("features", "frame_indices", "timestamps", "start", "end")
    return {name: np.stack([getattr(result, name) for result in results]) for name in names}


def write_features(
    target: Path, source: str, fields: Mapping[str, Any], run: Run
) -> "FailedClip | None":
    """Writes one video's features; the file is whole or absent.

    Args:
      target: the file.
      source: path of the video.
      fields: what the file holds, from `clip_fields` or `window_fields`.
      run: what made them.

    Returns:
      Why there is no file, where only its own name is at fault.

    Raises:
      UsageError: it cannot be written.
    """
    made_by = {
        "source": source,
        "kind": run.kind,
        "dtype": run.dtype,
        "model": run.model,
        "model_digest": run.model_digest,
        **run.options,
    }
    try:
        with atomic_file(target) as temporary, temporary.open("wb") as file:
            np.savez(file, **fields, **made_by)
    except OSError as error:
        if error.errno in _OF_ITS_NAME:
            from internvideo_jax.evaluation.features import FailedClip

            return FailedClip(source, f"{target}: {error.strerror}; give the video another name")
        why = no_space(target, fields["features"].nbytes) if is_full(error) else error.strerror
        raise arguments.UsageError(
            f"{target}: {why}; make room and run again with --resume"
        ) from error
    return None
