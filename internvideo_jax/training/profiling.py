"""Traces of a few steps of a run, for xprof."""

import contextlib
from pathlib import Path
from typing import Any

import jax

PROFILE = "profile"


class Profile(contextlib.AbstractContextManager["Profile"]):
    """Traces steps, what every process does in them and its devices; to be used in a `with` block.

    Args:
      steps: the first and the last step; None traces none. What is left out of them by a run that
        goes on later, or ends earlier, is not traced.
      folder: gets `plugins/profile/TIME/HOST.xplane.pb`.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path) -> None:
        self._steps, self._folder = steps, folder
        self._is_tracing = False

    def before(self, step: int) -> None:
        """To be called before each step."""
        if self._steps and not self._is_tracing and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True

    def after(self, step: int, results: Any) -> bool:
        """To be called after each step, with its results; returns whether a trace is complete."""
        if not self._is_tracing or self._steps is None or step < self._steps[1]:
            return False
        # Devices lag behind.
        jax.block_until_ready(results)
        self._stop()
        return True

    def __exit__(self, *error: object) -> None:
        if self._is_tracing:
            self._stop()

    def _stop(self) -> None:
        self._is_tracing = False
        jax.profiler.stop_trace()
