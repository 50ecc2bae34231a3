"""`internvideo-jax supervise`: starts a training run again until it is complete."""

import argparse
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from internvideo_jax.launch import arguments

SUMMARY = "start a training run again after preemptions and failures"

EPILOG = """\
Runs `internvideo-jax train ...` until it is complete. Where nothing else restarts what ends, as on
TPU VMs, this does it, on each host of a run by itself:
  exit code 0                the run is complete: so is this
  exit code 42 (preempted)   started again at once
  any other, or a kill       started again after --delay seconds, and given up after --failures in a
                             row between which no new checkpoint was written
SIGTERM, SIGHUP and Ctrl-C are handed on to the run, whose exit code is then that of this command:
42 after SIGTERM, with a checkpoint. A second Ctrl-C reaches it too, and ends it at once.

examples:
  internvideo-jax supervise train --config=configs/stage1/pretrain.py:1b --workdir=runs/1b ...
  nohup internvideo-jax supervise --failures=9 train --config=... --workdir=... >> train.log 2>&1 &

launch/tpu/run.sh and launch/slurm/train.sbatch use it; JobSets restart by themselves.
"""

# Where `training.loop` writes checkpoints, in folders named by their steps.
_CHECKPOINTS = "checkpoints"
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code of the last start."""
    parser = arguments.make_parser("supervise", SUMMARY, EPILOG)
    parser.add_argument(
        "--failures",
        type=arguments.positive_int,
        default=5,
        help="failures without a new checkpoint between them, after which it is given up"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--delay",
        type=arguments.positive_int,
        default=30,
        help="seconds before a start after a failure (default: %(default)s)",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="train ...", help="the run, as without this"
    )
    args = parser.parse_args(argv)
    if args.command[:1] != ["train"]:
        found = args.command[0] if args.command else "nothing"
        raise arguments.UsageError(f"expected `train` and its options after ours, found {found}")
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--workdir", type=Path)
    workdir = options.parse_known_args(args.command[1:])[0].workdir
    if workdir is None:
        raise arguments.UsageError("expected --workdir=DIR among the options of train")
    command = [sys.executable, "-m", "internvideo_jax.launch.main", *args.command]
    return supervise(command, workdir, failures=args.failures, delay=args.delay)


def supervise(command: Sequence[str], workdir: Path, *, failures: int, delay: float) -> int:
    """Runs a program until it ends with 0, is stopped through this process, or fails for good.

    Args:
      command: the program, which ends with 42 when it wants to be started again.
      workdir: the folder whose `checkpoints/STEP` tell how far it has got.
      failures: in a row, without a later checkpoint, after which it is given up.
      delay: seconds before a start after a failure.

    Returns:
      The exit code of the last start; of one that signal n killed, 128 + n.
    """
    failed, reached = 0, _newest_step(workdir)
    with _Child() as child:
        while True:
            code = child.run(command)
            step = _newest_step(workdir)
            if code == 0 or child.stopped.is_set():
                return code
            if step > reached:
                failed, reached = 0, step
            how = "was preempted (exit code 42)"
            if code != arguments.EXIT_PREEMPTED:
                failed += 1
                how = f"failed with exit code {code}"
            place = f"after the checkpoint of step {step}" if step else "without a checkpoint"
            if failed == failures:
                _say(f"the run {how} {place}; given up: {failed} failures without a new checkpoint")
                return code
            if code == arguments.EXIT_PREEMPTED:
                _say(f"the run {how} {place}; started again")
            else:
                _say(
                    f"the run {how} {place}, failure {failed} of at most {failures} there; started"
                    f" again in {delay:g} s"
                )
                if child.stopped.wait(delay):
                    return child.code


class _Child:
    """One process after another, to which signals are handed on.

    Attributes:
      stopped: set once there was a signal; no other process is to be started then.
      code: with which to end if it came while there was none.
    """

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.code = arguments.EXIT_PREEMPTED
        self._number: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restore = contextlib.ExitStack()

    def run(self, command: Sequence[str]) -> int:
        """Starts a program and waits for its end; returns its exit code."""
        # A terminal sends Ctrl-C to all of its own session: it would come twice.
        self._process = subprocess.Popen(command, start_new_session=True)
        if self._number is not None:
            self._process.send_signal(self._number)
        code = self._process.wait()
        self._process = None
        return code if code >= 0 else 128 - code

    def __enter__(self) -> "_Child":
        for number in _SIGNALS:
            before = signal.getsignal(number)
            # As under nohup.
            if number != signal.SIGHUP or before is not signal.SIG_IGN:
                self._restore.callback(signal.signal, number, before)
                signal.signal(number, self._hand_on)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore.close()
        if self._process is not None:
            self._process.kill()

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if number == signal.SIGINT:
            self.code = 128 + signal.SIGINT
        self.stopped.set()
        if self._process is not None:
            self._process.send_signal(number)


def _newest_step(workdir: Path) -> int:
    names = (path.name for path in (workdir / _CHECKPOINTS).glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _say(text: str) -> None:
    print(f"internvideo-jax supervise: {text}", file=sys.stderr, flush=True)
