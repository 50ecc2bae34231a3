"""Models by name: released checkpoints and repositories of the hub are converted once and kept.

They lie in `$INTERNVIDEO_HOME/models` (by default in the user's cache directory) and are used from
there without a network. Deleting a folder makes its model anew.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from internvideo_jax.config import nearest_name
from internvideo_jax.convert.engine import conversion, registry
from internvideo_jax.convert.files import hub
from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.sources import SUFFIXES, choose_file, shards_of
from internvideo_jax.environment import home
from internvideo_jax.files import locked
from internvideo_jax.saved_model import DESCRIPTION

Say = Callable[[str], object]

# Names the model that `make demo` has trained.
DEMO = "demo"
# Where its runs are, in the demo's folder: by size, and by what made them.
_DEMO_MODELS = "training/{size}-*/stage_2/model"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def model_directory(name: str | os.PathLike[str], say: Say = _say) -> str:
    """The folder of a saved model, which is made first if it was named and is not there yet.

    Processes that ask for the same model at once wait for the one that makes it.

    Args:
      name: a folder; the name of a release (`internvideo-jax convert --list`); a Hugging Face
        repository, "owner/name" or "owner/name:file", where "@revision" may follow the name; or
        "demo", the stage-2 model of the demo. What exists as a path is taken as one.
      say: told what is downloaded and made, before that begins.

    Returns:
      A path, which is not looked into.

    Raises:
      ValueError: a name of none of these kinds (the nearest known name is suggested), a release
        that cannot be fetched, or a checkpoint that does not convert; see `conversion.prepare`.
      OSError: the disk is full or cannot be written; nothing remains.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text == DEMO and not _is_model(path):
        return _demo_model()
    if "://" in text and not text.startswith("hf://"):
        return text
    if path.exists():
        return str(path)
    if text.startswith(("/", "./", "../", "~")) or text in ("", ".", ".."):
        raise ValueError(
            f"expected the folder of a saved model, found nothing at {text!r}{_nearest(text)}"
        )
    release = registry.named(text)
    address = None if release is not None else _address(text)
    if release is None and address is None:
        raise ValueError(
            "expected the folder of a saved model, the name of a released one, or a Hugging Face"
            f" repository (owner/name, owner/name:file), found {text!r}{_nearest(text)}"
            " (`internvideo-jax convert --list` shows all names)"
        )
    target = home() / "models" / (release.name if release else _folder_name(str(address)))
    if _is_model(target):
        return str(target)
    lock = target.with_name(f".{target.name}.lock")
    with locked(lock, lambda: say(f"{text}: waiting for another process that makes it")):
        if not _is_model(target):
            with _named_as_folder(text, address):
                _make(text, release, address, target, say)
    return str(target)


@contextlib.contextmanager
def _named_as_folder(text: str, address: hub.Address | None) -> Iterator[None]:
    """Says of a repository that cannot be had that no folder has its name, which may be meant."""
    try:
        yield
    except CheckpointError as error:
        if text.startswith("hf://") or not str(error).startswith(f"{address} "):
            raise
        raise CheckpointError(f"{error}; there is no folder {text!r} here, either") from error


def say_download(name: str, sources: Sequence[str], target: Path, say: Say = _say) -> None:
    """Says what a model takes that is still to be downloaded, as far as its files tell.

    Args:
      name: of the model.
      sources: its files, of which those on the hub count that are not in its cache yet.
      target: where the model will be.
      say: told the sizes; nothing where nothing is to be downloaded, or the hub does not answer.
    """
    addresses = [
        address
        for source in sources
        if not Path(source).exists() and (address := hub.parse_address(source, SUFFIXES))
    ]
    try:
        size = sum(hub.download_size(each, choose_file, shards_of) for each in addresses)
    except CheckpointError:
        # It may lie in the hub's cache; if it does not, what follows says why it cannot be had.
        size = 0
    if size:
        places = ", ".join(map(str, addresses))
        say(
            f"{name}: downloads {size / 1e9:.2f} GB from {places}, once, to the hub's cache; the"
            f" model made of it takes up to as much disk again, in {target}, and, loaded, up to as"
            " much memory, or twice that where weights of 16 bits become float32, as on CPUs"
        )


def _make(
    name: str,
    release: registry.Released | None,
    address: hub.Address | None,
    target: Path,
    say: Say,
) -> None:
    if release is not None:
        if not release.sources:
            raise ValueError(
                f"expected a model that can be fetched, found {name}, which cannot"
                f" ({release.status}{': ' + release.note if release.note else ''}); convert your"
                f" own: internvideo-jax convert {release.files} --model={name} --output={target}"
            )
        sources = release.sources
    else:
        sources = (str(address),)
    say_download(name, sources, target, say)
    request = conversion.Request(release=release.name if release is not None else None)
    prepared = conversion.prepare(sources, request)
    say(
        f"{name}: converts {prepared.nbytes / 1e9:.2f} GB of weights to {target}, once, which takes"
        f" {prepared.stored_bytes / 1e9:.2f} GB of disk; loaded, they take"
        f" {4 * prepared.num_parameters / 1e9:.2f} GB of memory in float32,"
        f" {2 * prepared.num_parameters / 1e9:.2f} GB in bfloat16 or float16"
    )
    conversion.write(prepared, target)


def _demo_model() -> str:
    """The demo's newest stage-2 model; that of a whole demo before that of a fast one.

    Raises:
      ValueError: there is none; says how to make it.
    """
    folder = home() / "demo"
    for size in ("full", "fast"):
        found = [m for m in folder.glob(_DEMO_MODELS.format(size=size)) if _is_model(m)]
        if found:
            return str(max(found, key=lambda model: (model / DESCRIPTION).stat().st_mtime))
    pattern = folder / _DEMO_MODELS.format(size="*")
    raise ValueError(
        f"expected the model of the demo in {pattern}, found none: make it by `make demo` (some 20"
        " minutes) or, trained for a few steps alone, by `internvideo-jax demo --fast`; of a demo"
        " with another --output, name its folder training/.../stage_2/model"
    )


def _address(text: str) -> hub.Address | None:
    """Reads "owner/name[@revision][:file]", and what begins with "hf://" as `convert` does."""
    if text.startswith("hf://"):
        return hub.parse_address(text)
    repo, colon, file = text.partition(":")
    if Path(repo.partition("/")[0]).is_dir() and not colon:
        # A folder here: what is missing is in it.
        return None
    address = hub.parse_address(repo, SUFFIXES)
    return address._replace(file=file) if address is not None and file else address


def _folder_name(address: str) -> str:
    return address.removeprefix("hf://").replace("/", "--").replace(":", "--")


def _nearest(text: str) -> str:
    folder = Path(text).parent
    beside = [str(path) for path in folder.iterdir()] if folder.is_dir() else []
    released = [release.name for release in registry.releases()]
    return nearest_name(text, [DEMO, *released]) or nearest_name(text, beside)


def _is_model(path: Path) -> bool:
    return (path / DESCRIPTION).is_file()
