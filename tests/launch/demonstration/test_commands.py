import sys

import pytest

from internvideo_jax.launch.demonstration.commands import run_command


def test_commands_can_be_pasted(capsys):
    run_command("extract", lambda argv: 0, ["a b.mp4", "--output=it's"])
    assert capsys.readouterr().out == "$ internvideo-jax extract 'a b.mp4' '--output=it'\"'\"'s'\n"


def test_the_output_of_silent_commands_is_dropped_but_for_errors(capsys):
    def command(argv):
        print("a table")
        print("an error", file=sys.stderr)
        return 3

    with pytest.raises(SystemExit) as ended:
        run_command("evaluate", command, ["--output=x"], is_silent=True)
    assert ended.value.code == 3
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("$ internvideo-jax evaluate --output=x\n", "an error\n")
