"""What the commands share that run a saved model over clips."""

import contextlib
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from internvideo_jax.environment import default_dtype, printable
from internvideo_jax.launch import arguments

if TYPE_CHECKING:
    from argparse import _ActionsContainer

    from internvideo_jax.data.windows import Windows
    from internvideo_jax.evaluation.features import FailedClip
    from internvideo_jax.loading import Model
    from internvideo_jax.saved_model import SavedModel


# Clips that cannot be read and are named one by one; the files of results name all.
MAX_SHOWN_FAILURES = 100


class Loaded(NamedTuple):
    """The model of a command.

    Attributes:
      model: ready to run.
      name: as it was given.
      directory: where it lies.
      dtype: what it computes in.
    """

    model: "Model"
    name: str
    directory: str
    dtype: str

    @property
    def digest(self) -> str:
        """Of its description, which holds the checksums of its weights: 16 hexadecimal digits."""
        return model_digest(self.directory)


def model_digest(directory: str) -> str:
    """`Loaded.digest` of the model in a folder.

    Raises:
      ValueError: there is none.
    """
    from internvideo_jax.checksums import description_sha256
    from internvideo_jax.saved_model import read_description

    return description_sha256(read_description(directory))[:16]


def add_model_argument(parser: ArgumentParser, name: str = "--model", default: str = "") -> None:
    """Adds the model, as an option or, named without dashes, in its place.

    Args:
      parser: of the command.
      name: of the argument.
      default: which model is meant without, in words; "" where one has to be named.
    """
    argument = parser.add_argument(
        name,
        metavar="MODEL",
        help="a folder that `train` or `convert` wrote, the name of a released model (`convert"
        " --list`), `demo`, or a Hugging Face repository; what is named is converted once and kept"
        + (f" (default: {default})" if default else ""),
    )
    argument.required = not default


def add_dtype_argument(parser: ArgumentParser, default: str | None = None) -> None:
    """Adds `--dtype`, by default what suits the device."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default=default,
        help=f"what the model computes in (default: {default or 'what suits the device'})",
    )


def add_arguments(parser: ArgumentParser, default_model: str = "") -> None:
    """Adds `--model`, `--frames`, `--batch_size`, `--dtype` and `--num_threads`.

    Args:
      parser: of the command.
      default_model: as of `add_model_argument`.
    """
    add_model_argument(parser, default=default_model)
    parser.add_argument(
        "--frames",
        type=arguments.positive_int,
        help="per clip or view (default: as the model was made for)",
    )
    parser.add_argument(
        "--batch_size",
        type=arguments.positive_int,
        default=8,
        help="clips or views that are held together at most (default: %(default)s); a CPU runs them"
        " one by one, accelerators powers of two",
    )
    add_dtype_argument(parser)
    parser.add_argument(
        "--num_threads", type=arguments.positive_int, help="decoding threads (default: all cores)"
    )


def add_window_arguments(parser: "_ActionsContainer", default: str = "") -> None:
    """Adds `--window` and `--stride`.

    Args:
      parser: of the command, or a group of its options.
      default: seconds of a window without, in words; "" takes videos as a whole.
    """
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="cut videos into windows" + (f" (default: {default})" if default else ""),
    )
    parser.add_argument(
        "--stride",
        type=float,
        metavar="SECONDS",
        help="from one window's start to the next's (default: the window)",
    )


def windows_of(args: Namespace, *needing: str) -> "Windows | None":
    """The windows of `--window` and `--stride`; None without.

    Args:
      args: of the command.
      needing: further options that mean nothing without windows.

    Raises:
      UsageError: one of them, or a stride, without windows.
      ValueError: no such windows are possible.
    """
    from internvideo_jax.data.windows import Windows

    if args.window is None:
        for option in ("stride", *needing):
            if getattr(args, option) is not None:
                raise arguments.UsageError(
                    f"--{option}: expected --window=SECONDS beside it, found none; add it"
                )
        return None
    return Windows(args.window, args.window if args.stride is None else args.stride)


def load_model(args: Namespace) -> Loaded:
    """The model of `--model`; each of several devices has a copy, and they share batches.

    Raises:
      UsageError: the process is one of several.
    """
    import jax

    from internvideo_jax.convert.library import model_directory
    from internvideo_jax.loading import load

    if jax.process_count() > 1:
        raise arguments.UsageError(
            f"expected one process, with any number of devices, found {jax.process_count()} of a"
            " pod, each of which would measure and write the same; start the command on one machine"
            " that is no part of a pod"
        )
    directory = model_directory(args.model)
    dtype = args.dtype or default_dtype(jax.devices()[0])
    return Loaded(load(directory, dtype=dtype), args.model, directory, dtype)


def announce_frames(model: "SavedModel", num_frames: int) -> None:
    """Says so where clips have other lengths than those that the model was made for."""
    made_for = model.preprocessing.require_video().num_frames
    if num_frames != made_for:
        print(
            f"the model was made for {made_for} frames: its position table is resized to"
            f" {num_frames}",
            file=sys.stderr,
        )


def place(clip: "FailedClip") -> str:
    """What a clip or window without a result is called."""
    from internvideo_jax.evaluation.features import FailedWindow
    from internvideo_jax.evaluation.figures.timeline import format_time

    if not isinstance(clip, FailedWindow):
        return clip.source
    return f"{clip.source} {format_time(clip.start)} - {format_time(clip.end)}"


def print_failures(failed: Sequence[tuple[str, str]]) -> None:
    """Lists the paths of clips that cannot be read, and why; of many, the first."""
    if not failed:
        return
    shown = failed[:MAX_SHOWN_FAILURES]
    width = max(len(path) for path, _ in shown)
    print(f"{len(failed)} failed:", file=sys.stderr)
    for path, reason in shown:
        print(printable(f"  {path:{width}}  {reason}"), file=sys.stderr)
    if len(failed) > len(shown):
        print(f"  and {len(failed) - len(shown)} more", file=sys.stderr)


@contextlib.contextmanager
def memory_errors(batch_size: int, num_frames: int) -> Iterator[None]:
    """Says what to lower where a batch does not fit into memory."""
    import jax

    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = next(iter(str(error).splitlines()), "out of memory")
        raise arguments.UsageError(
            f"{batch_size} clips of {num_frames} frames do not fit into memory ({reason});"
            " lower --batch_size or --frames, or compute in --dtype=bfloat16"
        ) from error
