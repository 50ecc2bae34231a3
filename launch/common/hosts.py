"""Commands that run on many hosts at once: they meet, and one of them speaks."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from internvideo_jax.environment import is_debugging
from internvideo_jax.launch import arguments
from internvideo_jax.parallel import hosts
from internvideo_jax.training import process

_log = logging.getLogger(__name__)

# Seconds after which a file of one host must be there on the others.
_PATIENCE = 10.0


@contextlib.contextmanager
def joined(exit_codes: Mapping[int, int]) -> Iterator[None]:
    """Connects this process with the others of its run, if its environment tells of such.

    To be entered before the first use of a device. Process 0 then says what there is to say; of the
    others only warnings and errors are shown. A block that ends well ends on all of them together;
    what one of them raises ends the others, as their connection breaks.

    Args:
      exit_codes: of a process that waits for the others, by the signal that ends it.

    Raises:
      hosts.HostsError: the others were not there in time.
      ValueError: the environment contradicts itself.
    """
    found = None if _is_joined() else hosts.detect()
    if found is None:
        yield
        return
    if found.process_id == 0:
        _log.info("waiting for all %d processes (%s)", found.count, found.source)
    # The wait is in native code, which lets no handler of Python's run.
    with process.enforced(process.Notice(), exit_codes):
        hosts.join(found)
    logger = logging.getLogger("internvideo_jax")
    level = logger.level
    if found.process_id and not is_debugging():
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
    hosts.leave()


def check_shared(folder: Path) -> None:
    """Makes sure that all processes of a run see one folder; all of them must call it.

    Raises:
      ValueError: some do not; names the folder.
      OSError: process 0 cannot make it.
    """
    import jax

    if jax.process_count() == 1:
        return
    import numpy as np
    from jax.experimental import multihost_utils

    # No other host has a file of this name by chance.
    token = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(8), np.uint8))
    path = folder / f".seen-{bytes(token).hex()}"
    is_main = jax.process_index() == 0
    with _file(path) if is_main else contextlib.nullcontext():
        multihost_utils.sync_global_devices("a file is there")
        seen = multihost_utils.process_allgather(np.asarray(_appears(path)))
    if not np.all(seen):
        blind = np.flatnonzero(np.logical_not(seen))
        raise ValueError(
            f"--workdir={folder}: expected a folder that all {len(seen)} processes see, found one"
            f" of process 0 that {len(blind)} do not, process {blind[0]} for one; name a folder of"
            " a file system that is mounted on every host"
        )


@contextlib.contextmanager
def _file(path: Path) -> Iterator[None]:
    """An empty file, with its folder, that is there as long as the block."""
    with arguments.removed_if_empty(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        try:
            yield
        finally:
            path.unlink()


def _appears(path: Path) -> bool:
    end = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _is_joined() -> bool:
    """Whether whoever calls the command has connected the processes already."""
    if "jax" not in sys.modules:
        return False
    import jax

    return bool(jax.distributed.is_initialized())
