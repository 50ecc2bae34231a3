"""Workers that hang, crash or fail cost their own argument only."""

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from internvideo_jax.launch.common.worker_pool import Lost, map_in_workers
from tests.processes import ROOT, is_running, wait_until


def test_each_failure_costs_its_own_argument():
    # `eval` is a function that a new process can find, whatever the tests are called.
    calls = [
        "1 + 1",
        "__import__('time').sleep(600)",
        "__import__('os').kill(__import__('os').getpid(), 11)",
        "__import__('os')._exit(3)",
        "1 / 0",
        "len('abc')",
    ]
    started = time.monotonic()
    results = dict(map_in_workers(eval, calls, num_workers=2, timeout=2.0))
    assert [results[call] for call in calls] == [
        2,
        Lost("no end after 2 s: its process was killed"),
        Lost("the process that read it died (SIGSEGV)"),
        Lost("the process that read it died (exit code 3)"),
        Lost("ZeroDivisionError: division by zero"),
        3,
    ]
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children()


def test_no_process_is_left_when_results_are_not_wanted():
    results = map_in_workers(
        eval, ["1", "__import__('time').sleep(600)"], num_workers=2, timeout=600.0
    )
    assert next(results) == ("1", 1)
    results.close()
    assert not multiprocessing.active_children()


def test_nothing_to_do():
    assert list(map_in_workers(eval, [], num_workers=2, timeout=1.0)) == []


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """They hold the pipes that they read from, so that nothing else tells them."""
    script = tmp_path / "parent.py"
    script.write_text(
        "from internvideo_jax.launch.common.worker_pool import map_in_workers\n"
        "if __name__ == '__main__':\n"
        "    calls = ['__import__(\"os\").getpid()', '__import__(\"time\").sleep(600)']\n"
        "    for call, result in map_in_workers(eval, calls, num_workers=2, timeout=600.0):\n"
        "        print(result, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not is_running(worker), "worker ended")
