"""Commands that the demo runs in its own process, shown as one would type them."""

import contextlib
import io
import shlex
from collections.abc import Callable, Sequence


def as_typed(name: str, *argv: str) -> str:
    """A command with its arguments, ready for a shell."""
    return shlex.join(["internvideo-jax", name, *argv])


def run_command(
    name: str,
    main_function: Callable[[Sequence[str]], int],
    argv: Sequence[str],
    *,
    is_silent: bool = False,
) -> None:
    """Runs a command.

    Args:
      name: of the command.
      main_function: its `main`.
      argv: its arguments.
      is_silent: drop its output, but for progress and errors.

    Raises:
      SystemExit: it failed.
    """
    print(f"$ {as_typed(name, *argv)}", flush=True)
    with contextlib.redirect_stdout(io.StringIO()) if is_silent else contextlib.nullcontext():
        code = main_function(argv)
    if code:
        raise SystemExit(code)
