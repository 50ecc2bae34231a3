"""A toy run in processes that things befall, each by itself or supervised.

As a program: `toy_program.py WORKDIR [--supervised FAILURES] [FAULT ...]`. A fault
`KIND@STEP:PROCESS` befalls that process while it waits for the batch of that step, once, or in each
of its starts if it ends in "!".
"""

import argparse
import errno
import os
import re
import signal
import sys
import time
from pathlib import Path

from internvideo_jax.launch import supervise

STEPS, EVERY = 48, 4
# Seconds: long for steps of milliseconds, also where all processes compile on a busy machine.
_HANG_TIMEOUT = 25.0


def kill(workdir):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(workdir):
    time.sleep(10_000)


def give_notice(workdir):
    os.kill(os.getpid(), signal.SIGTERM)


def damage(workdir):
    """Cuts off a file of the newest checkpoint."""
    steps = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name))
    file = max((newest / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    kill(workdir)


def blind(workdir):
    """Dies; when it starts again, it cannot read the newest checkpoint, which others can."""
    workdir.with_name(f"{workdir.name}.blind").touch()
    kill(workdir)


def fail_once(function):
    """The function, whose first call fails as a disk does."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return function(*args)

    return call


KINDS = {"kill": kill, "hang": hang, "notice": give_notice, "damage": damage, "blind": blind}


def hurt(start, workdir, faults, process):
    """This process's share of the batches, and what befalls it while it waits for them."""
    mine = [re.fullmatch(rf"(\w+)@(\d+):{process}(!?)", fault) for fault in faults]

    def begin(step):
        is_noticed = False
        for batch in start(step):
            step += 1
            # JAX looks for a notice once a second.
            time.sleep(1.0 if is_noticed else 0.0)
            for fault in filter(None, mine):
                mark = workdir.with_name(f"{workdir.name}-{fault[0]}")
                if int(fault[2]) == step and not mark.exists():
                    if not fault[3]:
                        mark.touch()
                    KINDS[fault[1]](workdir)
                    is_noticed = True
            yield batch

    return begin


def run(workdir, faults):
    """Trains; returns the exit code, as the command would."""
    import jax

    from internvideo_jax.parallel import hosts
    from internvideo_jax.training import watchdog
    from internvideo_jax.training.checkpoints import Checkpoints
    from internvideo_jax.training.config import CheckpointConfig
    from internvideo_jax.training.loop import train
    from tests.processes import join_system
    from tests.training import toy_stage as toy

    # Of those that wait for a process that is gone.
    hosts._SHUTDOWN_SECONDS = 5
    watchdog._GRACE = 3.0
    join_system(60.0)
    config = toy.make_config(
        steps=STEPS,
        checkpoint=CheckpointConfig(every_steps=EVERY, keep=2),
        hang_timeout=_HANG_TIMEOUT,
    )
    count, number = jax.process_count(), jax.process_index()

    def share(step):
        for batch in toy.batches(config)(step):
            yield {name: x.reshape(count, -1, *x.shape[1:])[number] for name, x in batch.items()}

    blinded = workdir.with_name(f"{workdir.name}.blind")
    if blinded.exists() and any(re.fullmatch(rf"blind@\d+:{number}", fault) for fault in faults):
        blinded.unlink()
        Checkpoints._read = fail_once(Checkpoints._read)
    data = hurt(share, workdir, faults, number)
    is_done = train(toy.ToyStage(), config, data, workdir, run_config=toy.run_config(config))
    hosts.leave()
    return 0 if is_done else 42


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("faults", nargs="*")
    parser.add_argument("--supervised", type=int, metavar="FAILURES")
    args = parser.parse_args()
    if args.supervised is None:
        sys.exit(run(args.workdir, args.faults))
    command = [sys.executable, __file__, str(args.workdir), *args.faults]
    sys.exit(supervise.supervise(command, args.workdir, failures=args.supervised, delay=1.0))


if __name__ == "__main__":
    main()
