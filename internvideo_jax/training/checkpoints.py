"""Checkpoints of a run: saved in the background, proved by checksums when they are read."""

import logging
import os
import re
import shutil
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from internvideo_jax.checksums import checksums, description_sha256
from internvideo_jax.environment import is_debugging
from internvideo_jax.files import is_full, no_space
from internvideo_jax.orbax_errors import DETAIL, WithoutOrbax, hide_leftovers
from internvideo_jax.training.config import differing_fields
from internvideo_jax.training.state import TrainState

State = TypeVar("State")
T = TypeVar("T")

# Bytes of a reason, as one process tells others.
_MAX_REASON = 400

# Entry of a checkpoint's description with the checksum of the others.
_SHA256 = "sha256"

# The layers between an array and the broken bytes, all of them in the checkpoint named already.
_LAYER = re.compile(
    r'Error opening "\w+" driver: '
    r'| in OCDBT database at local file "[^"]*"'
    r'|Error (?:reading|decoding) (?:Byte range \[[^)]*\) of )?local file "[^"]*": '
)


class RunCheckpointError(OSError):
    """A checkpoint that cannot be written, or none that can be read."""


class ConfigMismatchError(ValueError):
    """The checkpoints in a directory belong to a run with another config."""


class Checkpoints:
    """The checkpoints `DIRECTORY/STEP` of one run; a context manager that ends pending saves.

    A checkpoint counts once it is written completely: a save in flight at a kill leaves a directory
    with "tmp" in its name, which the next start removes.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        config: Mapping[str, Any],
        *,
        keep: int,
        say: Callable[[str], None] = print,
    ) -> None:
        """Opens or makes the directory.

        Args:
          directory: absolute; with several processes, one that all of them see.
          config: JSON-ready config of the run, kept with every checkpoint.
          keep: how many of the newest checkpoints stay.
          say: takes what the user should know, e.g. of a broken checkpoint.
        """
        self.directory = epath.Path(directory)
        self._config = config
        self._say = say
        # Of the last save's state.
        self._nbytes: int | None = None
        hide_leftovers()
        self._filter = WithoutOrbax()
        if not is_debugging():
            logging.getLogger("absl").addFilter(self._filter)
        # Reads what this process needs, and waits for no other: one may fail where others do not.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(), multiprocessing_options=alone
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
            ),
        )

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, position: Mapping[str, Any]) -> None:
        """Starts to save; returns when `state` may be donated.

        Args:
          step: names the checkpoint.
          state: what to save, a `TrainState` or a dict of arrays.
          position: further JSON-ready entries for the description, e.g. the data position.

        Raises:
          RunCheckpointError: this or the previous save cannot be written.
        """
        meta = {**position, "checksums": checksums(state), "config": self._config}
        meta[_SHA256] = description_sha256(meta)
        # Surfaces the previous save's failure under its own name.
        self.wait()
        self._nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(_as_dict(state)))
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_as_dict(state)), meta=ocp.args.JsonSave(meta)
                ),
            )
        except (OSError, ValueError) as error:
            raise self._cannot_write(error) from error

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
          RunCheckpointError: it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        # The file system's errors come as OSError, or as ValueError from TensorStore.
        except (OSError, ValueError) as error:
            raise self._cannot_write(error) from error

    def remove_all(self) -> None:
        """Removes all checkpoints."""
        for step in self.steps():
            self._manager.delete(step)

    def restore(self, target: State) -> State | None:
        """The newest checkpoint that can be read, or None if there is none at all.

        Newer ones that cannot be read are renamed to `STEP.broken`.

        Args:
          target: shapes, dtypes and shardings (`state.abstract_state`); the mesh may be another
            than that which saved.

        Raises:
          ConfigMismatchError: the run had another config; all differing fields are listed.
          RunCheckpointError: there are checkpoints, but none can be read.
        """
        broken: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state = self._restore(step, target)
            except ConfigMismatchError:
                raise
            # A damaged file shows as nearly anything, also as a bare `Exception`.
            except Exception as error:
                broken[step] = reason(error)
                continue
            for bad_step, cause in broken.items():
                self._set_aside(bad_step, cause, fallback=step)
            return state
        if broken:
            reasons = "\n  ".join(f"{step}: {cause}" for step, cause in broken.items())
            raise RunCheckpointError(
                f"none of the checkpoints in {self.directory} can be read:\n  {reasons}\n"
                "restore the directory from a copy, or start anew in another workdir"
            )
        return None

    def _restore(self, step: int, target: State) -> State:
        state, expected = _by_all(lambda: self._read(step, target))
        wrong = [name for name, value in checksums(state).items() if expected[name] != value]
        if wrong:
            raise ValueError(f"the checksums of {', '.join(wrong)} do not match")
        return state

    def _read(self, step: int, target: State) -> tuple[State, Mapping[str, int]]:
        """This process's parts of a checkpoint's arrays, and the checksums of all of them."""
        path = self.directory / str(step)
        found = self._reader.restore(path, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = found["meta"]
        # A changed byte must not pass for the config of another run. Older versions wrote no sum.
        sha256 = description_sha256(meta)
        if meta.get(_SHA256, sha256) != sha256:
            raise ValueError("the checksum of its description does not match")
        differing = differing_fields(meta["config"], self._config)
        if differing:
            raise ConfigMismatchError(
                f"{self.directory} holds a run with another config:\n  "
                + "\n  ".join(differing)
                + "\nresume with the config of that run, or name another workdir"
            )
        restored = self._reader.restore(
            path, args=ocp.args.Composite(state=ocp.args.StandardRestore(_as_dict(target)))
        )
        state = restored["state"]
        if isinstance(target, TrainState):
            state = target.replace(**state)
        return state, meta["checksums"]

    def _set_aside(self, step: int, cause: str, fallback: int) -> None:
        path = self.directory / str(step)
        aside = self.directory / f"{step}.broken"
        self._say(
            f"checkpoint {path} cannot be read ({cause}): kept as {aside.name}, resuming from"
            f" step {fallback}"
        )
        if jax.process_index() == 0:
            aside.rmtree(missing_ok=True)
            path.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside checkpoint {step}")
        self._manager.reload()

    def _cannot_write(self, error: Exception) -> RunCheckpointError:
        if jax.process_index() == 0:
            # They may be what fills the disk.
            for partial in self.directory.glob("*.orbax-checkpoint-tmp"):
                # Writers that still run may be faster; the next start removes what stays.
                shutil.rmtree(partial, ignore_errors=True)
        # From the disk: the manager forgets what it would have removed after this save.
        self._manager.reload()
        steps = ", ".join(map(str, self.steps())) or "none"
        why = no_space(self.directory, self._nbytes) if is_full(error) else reason(error)
        return RunCheckpointError(
            f"cannot write a checkpoint to {self.directory}: {why}; checkpoints that"
            f" are complete: {steps}; make room and start the same command again"
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except RunCheckpointError as failure:
            # The run may fail of the same full disk, in fewer words.
            if error is None or is_full(error):
                raise
            self._say(str(failure))
        finally:
            self._manager.close()
            self._reader.close()
            logging.getLogger("absl").removeFilter(self._filter)


def _by_all(task: Callable[[], T]) -> T:
    """What a task of every process gives this one; where it fails in one, it fails in all.

    Raises:
      Exception: that of this process.
      ValueError: it has failed in another one, by whose number and reason that is known.
    """
    if jax.process_count() == 1:
        return task()
    outcome: T | Exception
    try:
        outcome = task()
    except Exception as error:
        outcome = error
    own = b""
    if isinstance(outcome, Exception):
        own = (reason(outcome) or type(outcome).__name__).encode()[:_MAX_REASON]
    padded = np.frombuffer(own.ljust(_MAX_REASON, b"\0"), np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    if isinstance(outcome, Exception):
        raise outcome
    for number, row in enumerate(gathered):
        if told := bytes(row).rstrip(b"\0").decode(errors="ignore"):
            raise ValueError(f"process {number}: {told}")
    return outcome


def _as_dict(state: Any) -> dict[str, Any]:
    if isinstance(state, TrainState):
        return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
    return dict(state)


def reason(error: Exception) -> str:
    """What is the matter with a file of orbax, in a line: of an error or its cause."""
    cause = error.__cause__ or error
    message = f"no entry {cause}" if isinstance(cause, KeyError) else str(cause)
    details = {match["name"]: match["value"] for match in DETAIL.finditer(message)}
    if (code := details.get("os_error_code", "")).isdigit():
        return os.strerror(int(code))
    message = _LAYER.sub("", DETAIL.sub("", message))
    text = (message.splitlines() or [type(cause).__name__])[0]
    # TensorStore ends with what is wrong.
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-150:]}"
