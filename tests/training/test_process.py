"""Signals reach a run where it can take them, and it ends where it cannot."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvideo_jax.training.process import Stopped, claimed, preemption
from tests.processes import ROOT


def send(number):
    os.kill(os.getpid(), number)


def wait_for(notice, number):
    with notice.interrupting():
        send(number)
        time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_notice_is_noted_and_raised_where_it_may(number):
    before = signal.getsignal(number)
    with preemption() as notice:
        send(number)
        assert notice.signal == number
        with pytest.raises(Stopped):
            notice.check(3)
        # Also in a block that begins later.
        with pytest.raises(Stopped), notice.interrupting():
            raise AssertionError("not reached")
    with preemption() as notice:
        notice.check(3)
        with pytest.raises(Stopped):
            wait_for(notice, number)
    assert signal.getsignal(number) is before


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with preemption() as notice:
            send(signal.SIGHUP)
            notice.check(3)
        assert notice.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_interrupts_wherever_it_comes():
    with preemption() as notice:
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as caught:
            send(signal.SIGINT)
        assert not isinstance(caught.value, Stopped)
        # The other notices change nothing.
        send(signal.SIGTERM)
        assert notice.signal == signal.SIGTERM


# What is raised there, Python ignores and pytest warns of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_notice_during_garbage_collection_is_not_lost():
    """Python drops what a callback of the collector raises."""
    sent = []

    def callback(phase, info):
        if not sent:
            sent.append(phase)
            send(signal.SIGTERM)

    def run(notice):
        with notice.interrupting():
            gc.collect()
            time.sleep(60)

    gc.callbacks.append(callback)
    try:
        with preemption() as notice, pytest.raises(Stopped):
            run(notice)
    finally:
        gc.callbacks.remove(callback)


BUSY = """
import hashlib, signal, sys
from internvideo_jax.training import process
from internvideo_jax.training.process import enforced, preemption

process._PATIENCE = 1.0
with preemption() as notice, enforced(notice, {signal.SIGTERM: 42, signal.SIGINT: 130}):
    notice.is_unsaved = sys.argv[1] == "unsaved"
    print("busy", flush=True)
    # A minute in native code that never looks at signals.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""


def busy(state):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, state], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "busy\n"
    return process


def test_native_code_does_not_keep_a_process_that_has_nothing_to_save():
    """Not even the first signal's handler runs there."""
    with busy("saved") as idle, busy("unsaved") as unsaved:
        for process in (idle, unsaved):
            process.terminate()
        assert idle.wait(30) == 42
        assert unsaved.poll() is None
        # Ctrl-C twice ends it nevertheless.
        unsaved.send_signal(signal.SIGINT)
        time.sleep(0.3)
        unsaved.send_signal(signal.SIGINT)
        assert unsaved.wait(30) == 42


def test_outputs_stay_once_a_run_has_begun(tmp_path):
    for is_begun in (False, True):
        with claimed(tmp_path / "a" / "b", ("made", "missing")) as keep:
            (tmp_path / "a" / "b" / "made").mkdir()
            if is_begun:
                keep()
        assert (tmp_path / "a").exists() == is_begun
    # And of a run that was there before.
    with claimed(tmp_path / "a" / "b", ("made", "missing")):
        pass
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["lock", "made"]


@pytest.mark.parametrize("method", ["mkdir", "open"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, method):
    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, method, refuse)
    with (
        pytest.raises(OSError, match=f"{tmp_path}: .*Operation not permitted.*another workdir"),
        claimed(tmp_path, ("made",)),
    ):
        pass
