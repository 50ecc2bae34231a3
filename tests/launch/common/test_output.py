"""What nobody reads any more is no reason to end."""

import os
import subprocess
import sys

import pytest

from internvideo_jax.launch.common.output import has_reader, unread_output_dropped
from tests.processes import ROOT

# Prints in all ways that commands do, before and after its reader has left.
TALKER = """
import logging, sys
from tqdm import tqdm
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common.output import unread_output_dropped

@arguments.command
def main(argv):
    logger = logging.getLogger("internvideo_jax.test")
    print("first", file=sys.stderr, flush=True)
    bar = tqdm(total=3)
    sys.stdin.readline()
    for number in range(3):
        print("more", file=sys.stderr, flush=True)
        tqdm.write("more", file=sys.stderr)
        logger.warning("more")
        bar.update()
        bar.refresh()
    print("done")
    return arguments._fail("test", "expected 1, found 2")

with unread_output_dropped():
    sys.exit(arguments.end_process(main([])))
"""


def test_a_command_goes_on_when_the_reader_of_its_messages_leaves():
    process = subprocess.Popen(
        [sys.executable, "-c", TALKER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "first\n"
    process.stderr.close()
    process.stderr = None
    assert process.communicate("go on\n", timeout=60) == ("done\n", None)
    assert process.returncode == 2


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/null"])
def test_a_command_needs_no_stderr(redirection):
    result = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, TALKER],
        cwd=ROOT,
        input="",
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "done\n", "")


def test_a_full_disk_is_still_an_error():
    def print_much():
        with open("/dev/full", "w", buffering=1) as full, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", full)
            try:
                with unread_output_dropped():
                    print("more", file=sys.stderr)
            finally:
                # So that closing it does not fail as well.
                full.detach()

    with pytest.raises(OSError, match="No space left"):
        print_much()


def test_what_is_done_after_printing_is_done_without_a_reader():
    read, write = os.pipe()
    done = []
    with open(write, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with unread_output_dropped():
            print("read", flush=True)
            assert has_reader()
            os.close(read)
            assert not has_reader()
            print("unread " * 10_000, flush=True)
            assert not has_reader()
            done.append(True)
        assert sys.stdout is stream
    assert done


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_output_is_no_error(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    with unread_output_dropped():
        print("unread", flush=True, file=getattr(sys, name))
    assert getattr(sys, name) is None
