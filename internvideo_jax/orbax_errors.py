"""What orbax says of errors besides raising them: hidden, unless `INTERNVIDEO_DEBUG` is set."""

import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import orbax.checkpoint as ocp

from internvideo_jax.environment import is_debugging

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# Where orbax's code lies.
_ORBAX = f"{Path(ocp.__file__).parent}{os.sep}"

# In asyncio's reports of tasks of orbax, and of futures of TensorStore.
_ABANDONED = re.compile(f"{re.escape(_ORBAX)}|OCDBT database|(?i:tensorstore)")

# In TensorStore's messages: [name='what a developer wants to know'].
DETAIL = re.compile(r" \[(?P<name>[\w \[\]]+)='(?P<value>(?:[^'\\]|\\.)*)'\]")


class WithoutOrbax(logging.Filter):
    """Drops what orbax logs from a level on, by default errors: it raises them as well."""

    def __init__(self, level: int = logging.ERROR):
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record of the logger "absl" is shown."""
        return record.levelno < self._level or not record.pathname.startswith(_ORBAX)


@contextlib.contextmanager
def quiet_reading() -> Iterator[None]:
    """Keeps orbax from reporting, besides raising it, what is wrong with files that it reads."""
    hide_leftovers()
    hidden = WithoutOrbax(logging.WARNING)
    if not is_debugging():
        logging.getLogger("absl").addFilter(hidden)
    try:
        yield
    finally:
        logging.getLogger("absl").removeFilter(hidden)


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
