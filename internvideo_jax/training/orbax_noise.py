"""What orbax prints of errors besides raising them: hidden, unless `INTERNVIDEO_DEBUG` is set."""

import functools
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import orbax.checkpoint as ocp

from internvideo_jax.environment import is_debugging

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# Where orbax's code lies.
_ORBAX = f"{Path(ocp.__file__).parent}{os.sep}"

# In asyncio's reports of tasks of orbax, and of futures of TensorStore.
_ABANDONED = re.compile(f"{re.escape(_ORBAX)}|OCDBT database|tensorstore")


class WithoutOrbax(logging.Filter):
    """Drops the errors that orbax logs: it raises them as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record of the logger "absl" is shown."""
        return record.levelno < logging.ERROR or not record.pathname.startswith(_ORBAX)


@functools.cache
def hide_leftovers() -> None:
    """Hides reports of what orbax abandons after an error, unless INTERNVIDEO_DEBUG is set.

    Orbax closes an event loop whose tasks still wait for TensorStore. These complain when they are
    done or collected, up to the end of the process, of the error that was raised already.
    """
    if is_debugging():
        return
    logging.getLogger("asyncio").addFilter(
        lambda record: not _ABANDONED.search(record.getMessage())
    )
    # The only task of orbax that has been seen to be closed before it began.
    warnings.filterwarnings(
        "ignore", r"coroutine 'Store\._get_array_metadatas' was never awaited", RuntimeWarning
    )
    hook = sys.unraisablehook

    def show(report: "UnraisableHookArgs") -> None:
        if not _is_leftover(report):
            hook(report)

    sys.unraisablehook = show


def _is_leftover(report: "UnraisableHookArgs") -> bool:
    """Whether a coroutine of orbax ended badly, or native code found its event loop closed."""
    if report.object is None:
        return str(report.exc_value) == "Event loop is closed"
    code = getattr(report.object, "cr_code", None)
    return code is not None and code.co_filename.startswith(_ORBAX)
