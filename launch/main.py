"""The console program `internvideo-jax`: finds the commands and hands over to one."""

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from internvideo_jax import __version__
from internvideo_jax.config import nearest_name
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common.output import unread_output_dropped

_SUMMARY = re.compile(r"^SUMMARY = (.+)$", re.MULTILINE)


def commands() -> dict[str, str]:
    """Names and one-line summaries of the modules of `launch` that define `SUMMARY`.

    They are read, not imported: all of them together take longer to import than any one.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    found = {file.stem: _SUMMARY.search(file.read_text("utf-8")) for file in files}
    return {name: ast.literal_eval(match[1]) for name, match in found.items() if match}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `internvideo-jax COMMAND ...`; returns the exit code."""
    with unread_output_dropped():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    known = commands()
    width = max(map(len, known)) + 2
    parser = argparse.ArgumentParser(
        prog="internvideo-jax",
        usage="%(prog)s [-h] [--version] COMMAND [ARGUMENT ...]",
        description="The InternVideo family of video models in JAX.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}{summary}" for name, summary in known.items())
        + "\n\nHelp on one of them: internvideo-jax COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"internvideo-jax {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        parser.print_help()
        return 0
    args = parser.parse_args(given)
    if args.command not in known:
        parser.error(
            f"no command {args.command!r}{nearest_name(args.command, known)}"
            f" (commands: {', '.join(known)})"
        )
    # Once it has returned, no frame keeps open what an error interrupted.
    module = importlib.import_module(f"internvideo_jax.launch.{args.command}")
    code = int(module.main(args.arguments))
    return arguments.end_process(code) if argv is None else code


if __name__ == "__main__":
    raise SystemExit(main())
