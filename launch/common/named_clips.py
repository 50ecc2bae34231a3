"""Videos that a command line names: files, folders, and lists of paths."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from internvideo_jax.launch import arguments


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the videos, and `--list`."""
    parser.add_argument(
        "videos", nargs="*", metavar="FILE|DIR", help="video files, or folders to search for them"
    )
    parser.add_argument(
        "--list",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a text with the path of a video or folder on each line, relative to its own folder;"
        " may be given several times",
    )


def named(args: Namespace) -> list[str]:
    """The videos of a command, as `data.annotations.folders.named_videos` gives them.

    Raises:
      UsageError: none are named.
      ValueError: a path that does not exist, a folder without videos, a list that is none.
    """
    from internvideo_jax.data.annotations.folders import named_videos

    listed = [path for file in args.list for path in listed_paths(file)]
    if not (args.videos or listed):
        raise arguments.UsageError("expected video files, folders, or --list=FILE, found none")
    return named_videos([*args.videos, *listed])


def listed_paths(file: Path) -> list[str]:
    """The paths that a text names, one on each line, absolute.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no UTF-8 text of paths, or names what does not exist; says in which line.
    """
    from internvideo_jax.data.annotations.entries import EntryError, quote
    from internvideo_jax.data.annotations.lines import check_encoding, read_lines
    from internvideo_jax.files import check_regular

    check_regular(file)
    folder, paths = os.path.dirname(os.path.abspath(file)), []
    try:
        check_encoding(str(file))
    except EntryError as error:
        raise ValueError(f"{file}: expected {error.expected}, found {error.found}") from None
    for number, line in read_lines(str(file)):
        if isinstance(line, EntryError):
            raise ValueError(
                f"{file}, line {number}: expected {line.expected}, found {line.found}; correct it"
            )
        paths.append(os.path.join(folder, line.strip()))
        if not os.path.lexists(paths[-1]):
            raise ValueError(
                f"{file}, line {number}: expected the path of a video or folder, found nothing at"
                f" {quote(paths[-1])}; correct it"
            )
    if not paths:
        raise ValueError(f"{file}: expected the path of a video on each line, found none")
    return paths


def folders(args: Namespace) -> list[str]:
    """The folders among what a command names itself, absolute."""
    return [os.path.abspath(path) for path in args.videos if os.path.isdir(path)]
