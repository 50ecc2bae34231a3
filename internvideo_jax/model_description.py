"""`model.json`, which describes a saved model: written, read, and looked at before it serves."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from internvideo_jax.checksums import description_sha256
from internvideo_jax.config import from_dict, nearest_name, to_dict
from internvideo_jax.files import read_json
from internvideo_jax.model_files import SavedModelError, copy_tokenizer_files, hash_files
from internvideo_jax.models import ARCHITECTURES
from internvideo_jax.preprocessing import Preprocessing

_logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
DESCRIPTION = "model.json"
ARRAYS = "params"
_OWN_KEYS = ("format_version", "architecture", "config", "preprocessing", "tokenizer")
# In the description only of classifiers whose classes have names.
_CLASSES = "classes"
# In all but older ones: checksums of arrays by name, the SHA-256 of files by path, and its own.
_CHECKSUMS = "checksums"
_FILES = "files"
_SHA256 = "sha256"
# The folder of a training run's checkpoints, each by its step.
_RUN_CHECKPOINTS = "checkpoints"
_ALL_KEYS = (*_OWN_KEYS, _CLASSES, _CHECKSUMS, _FILES, _SHA256)


def write_description(
    directory: epath.PathLike,
    architecture: str,
    config: Any,
    preprocessing: Preprocessing,
    metadata: Mapping[str, Any] | None = None,
    tokenizer_files: Mapping[str, epath.PathLike] | None = None,
    classes: Sequence[str] | None = None,
    sums: Mapping[str, int] | None = None,
) -> None:
    """Copies the tokenizer files and writes `model.json`; the arrays must be there already.

    Args are those of `saved_model.save`; `sums` are the arrays' checksums by path, see `checksums`.

    Raises:
      SavedModelError: the architecture is unknown, `config` is not its config, the tokenizer files
        are not those that the preprocessing names, or the classes not as many as the config's.
    """
    expected = architecture_named(architecture).config_cls
    if not isinstance(config, expected):
        raise SavedModelError(
            f"{architecture} has a config of {expected.__name__}, found {type(config).__name__}"
        )
    taken = [key for key in metadata or {} if key in _ALL_KEYS]
    if taken:
        raise SavedModelError(f"metadata may not hold the description's own entries {taken}")
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "config": to_dict(config),
        "preprocessing": to_dict(preprocessing),
        "tokenizer": copy_tokenizer_files(
            epath.Path(directory), preprocessing, tokenizer_files or {}
        ),
        **(metadata or {}),
    }
    if classes is not None:
        description[_CLASSES] = list(check_classes(list(classes), config, str(directory)) or ())
    if sums is not None:
        description[_CHECKSUMS] = dict(sums)
    description[_FILES] = hash_files(epath.Path(directory), ARRAYS)
    description[_SHA256] = description_sha256(description)
    text = json.dumps(description, indent=2) + "\n"
    partial = epath.Path(directory) / f".{DESCRIPTION}.partial"
    partial.write_text(text)
    partial.replace(epath.Path(directory) / DESCRIPTION)


def read_description(directory: epath.PathLike) -> dict[str, Any]:
    """Reads `model.json`: `architecture`, `config`, `preprocessing`, `tokenizer` (SHA-256 by name)
    and what the writer added, in the form of the present format version.

    Raises:
      SavedModelError: not a model directory, a damaged description, another format version or an
        unknown architecture.
    """
    path = epath.Path(directory) / DESCRIPTION
    if not path.is_file():
        raise SavedModelError(
            f"{directory} is not a saved model: it has no {DESCRIPTION}."
            f" {_advice(epath.Path(directory))}"
        )
    try:
        description = read_json(path)
    except ValueError as error:
        raise SavedModelError(str(error)) from None
    if not isinstance(description, dict) or type(description.get("format_version")) is not int:
        raise SavedModelError(f"{path} does not describe a saved model")
    version, sha256 = description["format_version"], description_sha256(description)
    if version == 1:
        # It knew videos only.
        if "preprocessing" in description:
            description["preprocessing"] = {"video": description["preprocessing"]}
        description |= {"format_version": FORMAT_VERSION, "tokenizer": {}}
    elif version != FORMAT_VERSION:
        raise SavedModelError(
            f"{path} has format version {version!r}, this internvideo_jax reads 1 to"
            f" {FORMAT_VERSION}: install the version that wrote it, or convert the model again"
        )
    elif description.get(_SHA256, sha256) != sha256:
        raise SavedModelError(
            f"{path} is damaged: its entries do not have the SHA-256 that was written with them;"
            " copy or convert the model again (if it was changed on purpose, remove its entry"
            f' "{_SHA256}")'
        )
    missing = [key for key in _OWN_KEYS if key not in description]
    if missing:
        raise SavedModelError(f"{path} lacks {', '.join(missing)}")
    architecture_named(description["architecture"])
    return description


def _advice(folder: epath.Path) -> str:
    """What to do about a folder that is no model: `train` leaves `model/` in its workdir, and
    `checkpoints/STEP` beside it."""
    is_step = folder.parent.name == _RUN_CHECKPOINTS and folder.name.isdecimal()
    run = folder
    if is_step:
        run = folder.parent.parent
    elif folder.name == _RUN_CHECKPOINTS:
        run = folder.parent
    trained = run / "model"
    if (trained / DESCRIPTION).is_file():
        return f"Did you mean {trained}?"
    if is_step:
        return f"It is a training checkpoint: `train` writes {trained} when it ends"
    return "A PyTorch checkpoint becomes one with: internvideo-jax convert SOURCE --output=DIR"


def read_config(path: epath.PathLike) -> tuple[Any, Preprocessing]:
    """The config and the preprocessing of a saved model, without its arrays.

    Raises:
      SavedModelError: as `read_description`.
      ValueError: an unknown field, or one of another type or out of its range.
    """
    directory = epath.Path(path).expanduser().resolve()
    return parse_description(read_description(directory), str(directory / DESCRIPTION))


def parse_description(description: Mapping[str, Any], where: str) -> tuple[Any, Preprocessing]:
    """The config and the preprocessing of a description; `where` names it in errors.

    Raises:
      ValueError: an unknown field, or one of another type or out of its range.
    """
    config_cls = ARCHITECTURES[description["architecture"]].config_cls
    return (
        from_dict(config_cls, description["config"], f"{where}: config"),
        from_dict(Preprocessing, description["preprocessing"], f"{where}: preprocessing"),
    )


def architecture_named(name: Any) -> Any:
    """The architecture in `models.ARCHITECTURES`.

    Raises:
      SavedModelError: there is none of that name; suggests the nearest.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise SavedModelError(
            f"expected an architecture of {', '.join(ARCHITECTURES)}, found {name!r}"
            + nearest_name(str(name), ARCHITECTURES)
        )
    return ARCHITECTURES[name]


def check_classes(classes: Any, config: Any, where: str) -> tuple[str, ...] | None:
    """Names of a classifier's classes, if it has any.

    Raises:
      SavedModelError: no list of names, or other than one for each class.
    """
    if classes is None:
        return None
    wanted = getattr(config, "num_classes", 0)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise SavedModelError(f"{where}: expected {_CLASSES} to be a list of names")
    if len(classes) != wanted or len(set(classes)) != wanted:
        raise SavedModelError(
            f"{where}: expected {wanted} different names of {_CLASSES}, as the model has, found"
            f" {len(set(classes))} in {len(classes)}"
        )
    return tuple(classes)


def array_sums(description: Mapping[str, Any], where: str) -> dict[str, int] | None:
    """The checksums of the arrays by path; None, and a warning, of older models without any.

    Raises:
      SavedModelError: they are no numbers by name.
    """
    sums = description.get(_CHECKSUMS)
    if sums is None:
        _logger.warning("%s holds no checksums: its arrays are loaded unchecked", where)
        return None
    if not isinstance(sums, dict):
        raise SavedModelError(f"{where}: expected {_CHECKSUMS} to be numbers by name")
    return sums


def file_sums(description: Mapping[str, Any], where: str) -> dict[str, str]:
    """The SHA-256 of files by their path in the model; of older models, of none.

    Raises:
      SavedModelError: no sums by path, or a path that leads out of the model.
    """
    files = description.get(_FILES, {})
    if not isinstance(files, dict) or not all(isinstance(sha256, str) for sha256 in files.values()):
        raise SavedModelError(f"{where}: expected {_FILES} to be SHA-256 sums by path")
    for name in files:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise SavedModelError(
                f"{where}: expected {_FILES} in the model's folder, found {name!r}"
            )
    return files


def metadata_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """What the writer has added to a description."""
    return {name: value for name, value in description.items() if name not in _ALL_KEYS}
