"""The files of a model's tokenizer: beside its checkpoint, in a folder of their own, or fetched."""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from internvideo_jax.convert.engine.registry import HubFile, Released
from internvideo_jax.convert.files import hub
from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.sources import choose_file, shards_of
from internvideo_jax.preprocessing import Preprocessing


def find_tokenizer_files(
    preprocessing: Preprocessing,
    folders: Sequence[Path],
    given: Path | None,
    release: Released | None,
) -> dict[str, Path]:
    """The files that a model of texts keeps beside its arrays, by name.

    Args:
      preprocessing: names them.
      folders: of the checkpoint's files; of several that have a file, the first one counts.
      given: the folder that is to have them in place of these.
      release: whose files are fetched where none is found.

    Raises:
      CheckpointError: one of them cannot be fetched, or is another than the release's.
      ValueError: one of them is not found.
    """
    names = preprocessing.text.files if preprocessing.text is not None else ()
    places = [given] if given is not None else folders
    files = {n: d / n for n in names for d in reversed(places) if (d / n).is_file()}
    if release is not None and given is None:
        released = {PurePosixPath(file.file).name: file for file in release.tokenizer}
        files |= {n: _fetch(released[n], n) for n in names if n in released and n not in files}
    if absent := [name for name in names if name not in files]:
        raise ValueError(
            f"expected the tokenizer's files {', '.join(absent)} in {places[0]}, found none; pass"
            " --tokenizer=FOLDER"
        )
    return files


def _fetch(file: HubFile, name: str) -> Path:
    advice = f"pass --tokenizer=FOLDER with a {name} of your own"
    try:
        path = hub.fetch(hub.Address(file.repo, file=file.file), choose_file, shards_of)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or {advice}") from None
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if file.sha256 not in ("", sha256):
        raise CheckpointError(
            f"expected {file.place} to have the SHA-256 {file.sha256}, found {sha256}, which is"
            f" another tokenizer; {advice}"
        )
    return path
