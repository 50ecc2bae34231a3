"""Messages that nobody reads any more are no reason to end."""

import subprocess
import sys

import pytest

from internvideo_jax.launch.common.output import lasting_stderr
from tests.processes import ROOT

# Prints in all ways that commands do, before and after its reader has left.
TALKER = """
import logging, sys
from tqdm import tqdm
from internvideo_jax.launch import arguments

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
                with lasting_stderr():
                    print("more", file=sys.stderr)
            finally:
                # So that closing it does not fail as well.
                full.detach()

    with pytest.raises(OSError, match="No space left"):
        print_much()
