"""Opening a checkpoint wherever it lies: a file, a folder of shards, a Hugging Face repository."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from internvideo_jax.convert.files import hub, torch_zip
from internvideo_jax.convert.files.checkpoint import Checkpoint, CheckpointError, LazyTensor
from internvideo_jax.convert.files.safetensors_file import (
    looks_like_safetensors,
    open_safetensors_file,
)
from internvideo_jax.convert.files.torch_file import open_torch_file
from internvideo_jax.files import check_regular, read_json

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

# What Hugging Face libraries look for, in their order.
_STANDARD_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"
_MAX_INDEX_BYTES = 100 << 20
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng_state|training_args")
_MODEL_PARALLEL = re.compile(r"mp_rank_(?!00)\d+_model_states|zero_pp_rank_")

_RE_SAVE = 'torch.save(torch.load(old, map_location="cpu", weights_only=True), new)'
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"


def open_checkpoint(source: str | Path, key: str | None = None) -> Checkpoint:
    """Opens a checkpoint without reading its tensors.

    Args:
      source: a `.safetensors` file; a `.pt`, `.pth` or `.bin` file of torch 1.6 or later; an
        `*.index.json` of a sharded checkpoint; a folder with one of these, or with a DeepSpeed
        checkpoint; or a Hugging Face repository: `owner/name`, `owner/name@revision`,
        `hf://owner/name/file` or `hf://owner/name@revision/file`.
      key: for a PyTorch file, the place in it that holds the wanted weights, e.g. "model_ema";
        the default is the first of "model", "module", "state_dict", else the top level.

    Raises:
      CheckpointError: not found, damaged, hostile, of an unknown format, or ambiguous.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, key)
    if path.exists():
        return _open_file(path, key)
    address = hub.parse_address(str(source), SUFFIXES)
    if address is None:
        raise CheckpointError(
            f"{source} does not exist; expected a file, a folder, or a Hugging Face repository "
            "such as owner/name or hf://owner/name/file"
        )
    try:
        local = hub.fetch(address, choose_file, shards_of)
    except CheckpointError as error:
        # With `hf://` it cannot have been meant as a path.
        if str(address) == str(source):
            raise
        raise CheckpointError(f"{error}; nor is there a local file or folder {source}") from error
    return _open_file(local, key) if local.is_file() else _open_folder(local, key)


def choose_file(names: Iterable[str], where: str) -> str:
    """Returns the one file to open out of the names of all files of a folder.

    Raises:
      CheckpointError: none is a checkpoint, or several are.
    """
    names = sorted(names)
    for standard in _STANDARD_NAMES:
        if standard in names:
            if standard + _INDEX in names:
                raise CheckpointError(
                    f"{where} holds {standard} and shards of another copy ({standard}{_INDEX});"
                    " choose one of the two by its name"
                )
            return standard
    candidates = [
        name
        for name in names
        if name.endswith((*SUFFIXES, _INDEX))
        and not _NOT_WEIGHTS.search(PurePosixPath(name).name)
        and not _SHARD.search(name)
    ]
    split = [name for name in candidates if _MODEL_PARALLEL.search(name)]
    if split:
        raise CheckpointError(
            f"{where} holds weights that DeepSpeed split over processes ({split[0]}, ...); merge "
            "them first with the zero_to_fp32.py that DeepSpeed puts beside them"
        )
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = "".join(f"\n  {where}/{name}" for name in candidates)
        raise CheckpointError(f"{where} holds several checkpoints; choose one of{listed}")
    shards = [name for name in names if _SHARD.search(name)]
    if shards:
        raise CheckpointError(
            f"{where} holds shards ({shards[0]}, ...) but not their *{_INDEX}; add that file"
        )
    raise CheckpointError(f"{where} holds no checkpoint ({', '.join(SUFFIXES)} or *{_INDEX})")


def shards_of(index: Path) -> list[str]:
    """Returns the names of the shards that a `*.index.json` refers to, each once."""
    return list(dict.fromkeys(_read_index(index).values()))


def _open_folder(folder: Path, key: str | None) -> Checkpoint:
    names = [path.name for path in folder.iterdir() if path.is_file()]
    if any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            f"{folder} holds shards of torch.distributed.checkpoint; make one file of them where"
            " PyTorch is installed: python -m torch.distributed.checkpoint.format_utils"
            " dcp_to_torch FOLDER FILE.pth"
        )
    if "latest" in names:
        # DeepSpeed writes the name of the newest step's folder into this file.
        with open(folder / "latest", "rb") as file:
            tag = file.read(200).decode("utf-8", "replace").strip()
        if re.fullmatch(r"[\w.-]+", tag) and tag not in (".", "..") and (folder / tag).is_dir():
            return _open_folder(folder / tag, key)
    return _open_file(folder / choose_file(names, str(folder)), key)


def _open_file(path: Path, key: str | None) -> Checkpoint:
    try:
        check_regular(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(512)
    if size == 0:
        raise CheckpointError(f"{path} is empty: the download or the disk failed; fetch it again")
    if path.name.endswith(_INDEX):
        _refuse_key(path, key)
        return _open_shards(path)
    if _SHARD.search(path.name):
        raise CheckpointError(
            f"{path} is one shard of several; give the folder or its *{_INDEX} instead"
        )
    if start.startswith(torch_zip.MAGIC):
        return open_torch_file(path, key)
    if path.suffix == ".safetensors" or looks_like_safetensors(start):
        _refuse_key(path, key)
        return open_safetensors_file(path)
    raise CheckpointError(f"{path} is {_what_it_is(start)}")


def _what_it_is(start: bytes) -> str:
    """Describes the files that are mistaken for checkpoints, and what to do about each."""
    if start.startswith(_LEGACY_START) or start[257:262] == b"ustar":
        return (
            "in the format of PyTorch before 1.6, whose tensors are part of a pickle; save it "
            f"again where PyTorch is installed: {_RE_SAVE}"
        )
    if start.startswith(b"version https://git-lfs"):
        return "only a Git LFS pointer; fetch the file itself with: git lfs pull"
    if start.lstrip()[:1] == b"<":
        return "a web page, as a download gives that needs a login; fetch the file again"
    if start.startswith(b"\x80"):
        return f"a bare pickle, which cannot be read safely; save its tensors with {_RE_SAVE}"
    return f"not a checkpoint of a known format (it starts with {start[:8]!r})"


def _refuse_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise CheckpointError(f"{path} has no places inside it to choose from; drop key={key!r}")


def _open_shards(index: Path) -> Checkpoint:
    """Opens all shards that an index refers to as one checkpoint."""
    weight_map = _read_index(index)
    shards = dict.fromkeys(weight_map.values())
    absent = [name for name in shards if not (index.parent / name).is_file()]
    errors = [f"shard {name} is missing" for name in absent]
    tensors: dict[str, LazyTensor] = {}
    for name in (name for name in shards if name not in absent):
        path = index.parent / name
        is_safe = path.suffix == ".safetensors"
        for tensor, value in (open_safetensors_file if is_safe else open_torch_file)(path).items():
            # A tensor that the index does not place is loaded like the others.
            if weight_map.get(tensor, name) != name:
                continue
            if tensor in tensors:
                errors.append(f"{tensor} is in {name} and in another shard")
            tensors[tensor] = value
    for tensor, name in weight_map.items():
        if tensor not in tensors and name not in absent:
            errors.append(f"{tensor} is not in its shard {name}")
    if errors:
        raise CheckpointError(f"{index} does not match its shards:\n  " + "\n  ".join(errors))
    return Checkpoint(path=index.parent, tensors=tensors)


def _read_index(index: Path) -> dict[str, str]:
    """Returns tensor name -> shard of an index; shards lie in its folder or below."""
    try:
        content = read_json(index, _MAX_INDEX_BYTES)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} is not an index of shards: expected a `weight_map` of names of tensors to"
            f" shards, found {'none' if not weight_map else type(weight_map).__name__}"
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            name = repr(shard) if isinstance(shard, str) else f"a {type(shard).__name__}"
            raise CheckpointError(
                f"{index} refers to {name}, which is not in its folder, as the shard of {tensor}"
            )
    return weight_map


def _is_plain(name: str) -> bool:
    """Tells whether a relative path stays below its folder on every system."""
    return bool(name) and not re.search(r"^/|\\|:|\0|(^|/)\.{0,2}(/|$)", name)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Names of files, each with as many of its folders as tell it from the others."""

    def name(path: Path) -> str:
        for depth in range(1, len(path.parts) + 1):
            end = path.parts[-depth:]
            if sum(other.parts[-depth:] == end for other in paths) == 1:
                return "/".join(end)
        return str(path)

    return [name(path) for path in paths]
