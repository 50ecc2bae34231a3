"""What is done about lists, and clips of a list, that are not on disk."""

import os
import sys
from collections.abc import Sequence

from internvideo_jax.environment import printable
from internvideo_jax.launch import arguments

_MAX_LISTED = 20


def check_list(annotations: str | os.PathLike[str], config: str) -> None:
    """Refuses a list that is not there.

    Args:
      annotations: the list, or a folder; what is not on this machine's disks (`gs://…`) passes.
      config: `--config` of the command; `FILE.py:demo[,NAME[,SIZE]]` has lists that the demo makes.

    Raises:
      UsageError: there is nothing.
    """
    if "://" in os.fspath(annotations) or os.path.lexists(annotations):
        return
    file, _, chosen = config.partition(":")
    kind, name, size = (*chosen.split(","), "", "")[:3]
    if kind != "demo":
        raise arguments.UsageError(
            f"expected a list of clips, found nothing at {annotations}; correct"
            " --config.eval_data.annotations"
        )
    if size == "fast":
        how = "make them by `internvideo-jax demo --fast`"
    else:
        how = (
            "make them by `internvideo-jax demo`; what `internvideo-jax demo --fast` has made is"
            f" measured by --config={file}:demo,{name or 'NAME'},fast"
        )
    raise arguments.UsageError(
        f"expected the clips of the demo in {annotations}, found none: {how}"
    )


def check_missing(
    missing: Sequence[str], total: int, *, may_miss: bool, consequence: str = ""
) -> None:
    """Refuses a list of which clips are missing, or says which.

    Args:
      missing: their ids.
      total: clips of the list.
      may_miss: whether the others are measured.
      consequence: what it does to the measurement, as part of a sentence.

    Raises:
      UsageError: some are missing and must not, or all are; lists them.
    """
    if not missing:
        return
    named = "".join(f"\n  {name}" for name in missing[:_MAX_LISTED])
    more = len(missing) - _MAX_LISTED
    named += f"\n  and {more} more" if more > 0 else ""
    found = f"{len(missing)} of {total} videos are missing:{named}"
    advice = "set --config.eval_data.root=DIR"
    if len(missing) == total:
        raise arguments.UsageError(f"{found}\n{advice}")
    if not may_miss:
        raise arguments.UsageError(
            f"{found}\n{advice}; --allow_missing measures the others{consequence}, and says so in"
            " the card"
        )
    print(printable(found), file=sys.stderr)
