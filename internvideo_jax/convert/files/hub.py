"""Checkpoints on the Hugging Face hub: only the files that are needed, through its usual cache."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.labels import label_files
from internvideo_jax.files import is_full, no_space

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PREFIX = "hf://"
# For an answer of the hub, without which there is no network.
_SECONDS = 5.0
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ADDRESS = re.compile(rf"(?P<repo>{_PART}/{_PART})(@(?P<revision>[^/@]+))?(/(?P<file>.+))?")


class Address(NamedTuple):
    """A repository on the hub, or one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{_PREFIX}{self.repo}{revision}" + (f"/{self.file}" if self.file else "")


def parse_address(source: str, suffixes: Sequence[str] = ()) -> Address | None:
    """Reads `owner/name[@revision]`, with `hf://` before it also `/file` after it.

    Returns None for anything else; without `hf://` also if it ends in one of `suffixes`, because
    that is a local file that is not there.
    """
    match = _ADDRESS.fullmatch(source.removeprefix(_PREFIX))
    if match is None:
        return None
    address = Address(match["repo"], match["revision"], match["file"])
    if source.startswith(_PREFIX):
        return address
    return None if address.file or source.endswith(tuple(suffixes)) else address


def fetch(
    address: Address,
    choose_file: Callable[[Sequence[str], str], str],
    shards_of: Callable[[Path], Sequence[str]],
) -> Path:
    """Downloads what a checkpoint consists of, or finds it in the cache.

    Of a repository, also the small files that may name a classifier's classes.

    Args:
      address: the repository or file.
      choose_file: picks the file to open among the names of all files of the repository.
      shards_of: names the shards that a downloaded `*.index.json` refers to.

    Returns:
      The local file; without a network the folder of what was downloaded before.

    Raises:
      CheckpointError: gated, missing or unreachable; the message says what to do.
    """
    try:
        return _fetch(address, choose_file, shards_of)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{address} {_reason(address, error)}") from error


def download_size(
    address: Address,
    choose_file: Callable[[Sequence[str], str], str],
    shards_of: Callable[[Path], Sequence[str]],
) -> int:
    """Bytes that `fetch` would download now; of shards, their index is fetched to know them.

    Args and errors are those of `fetch`.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    repo, revision = address.repo, address.revision
    try:
        # Asked even where the file is known, as `_fetch` does.
        found = _file_names(api, address)
        names = [address.file or choose_file(found, str(address))]
        if names[0].endswith(".index.json"):
            index = Path(api.hf_hub_download(repo, names[0], revision=revision))
            folder = PurePosixPath(names[0]).parent
            names = [str(folder / shard) for shard in shards_of(index)]
        files = [api.hf_hub_download(repo, n, revision=revision, dry_run=True) for n in names]
        return sum(file.file_size or 0 for file in files if file.will_download)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{address} {_reason(address, error)}") from error


def _fetch(
    address: Address,
    choose_file: Callable[[Sequence[str], str], str],
    shards_of: Callable[[Path], Sequence[str]],
) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Given explicitly because the library reads this variable only once, when it is imported.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    repo, revision = address.repo, address.revision
    # Asked even where the file is known: this is not tried again and again without a network.
    names, is_offline = [], False
    try:
        names = _file_names(api, address)
    except Exception as error:
        # The hub's answers have these types, failed connections those of some HTTP library.
        is_offline = not isinstance(error, (HfHubHTTPError, HFValidationError))
        if not is_offline and address.file is None:
            raise

    def download(name: str) -> Path:
        return Path(api.hf_hub_download(repo, name, revision=revision, local_files_only=is_offline))

    if is_offline and address.file is None:
        return Path(api.snapshot_download(repo, revision=revision, local_files_only=True))
    name = address.file or choose_file(names, str(address))
    path = download(name)
    for label_file in label_files(names) if address.file is None else ():
        download(label_file)
    if name.endswith(".index.json"):
        for shard in shards_of(path):
            download(str(PurePosixPath(name).parent / shard))
    return path


def _file_names(api: "HfApi", address: Address) -> list[str]:
    info = api.model_info(address.repo, revision=address.revision, timeout=_SECONDS)
    return [sibling.rfilename for sibling in info.siblings or ()]


def _reason(address: Address, error: Exception) -> str:
    from huggingface_hub import constants, errors

    web = f"https://huggingface.co/{address.repo}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case errors.GatedRepoError():
            return f"is gated: accept its terms at {web}, then {log_in}"
        case errors.RevisionNotFoundError():
            return f"has no branch, tag or commit {address.revision!r}; see {web}"
        case errors.RepositoryNotFoundError():
            return f"does not exist or is private: check it at {web}; for a private one {log_in}"
        case errors.LocalEntryNotFoundError():
            return (
                "cannot be reached and was not downloaded before; go online (is HF_HUB_OFFLINE"
                " set?), or fetch it elsewhere and give the file's path to `convert`"
            )
        case errors.EntryNotFoundError():
            return f"is not in the repository; its files are listed at {web}/tree/main"
    if is_full(error):
        return f"cannot be fetched: {no_space(Path(constants.HF_HUB_CACHE) / address.repo)}"
    return f"cannot be fetched: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")
