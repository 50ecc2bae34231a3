"""What is done about clips of a list that are not on disk."""

import sys
from collections.abc import Sequence

from internvideo_jax.environment import printable
from internvideo_jax.launch import arguments

_MAX_LISTED = 20


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
