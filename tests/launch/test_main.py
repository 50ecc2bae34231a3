import json
import subprocess
import sys
from pathlib import Path

import pytest

from internvideo_jax import __version__
from internvideo_jax.launch import main as program
from tests.processes import run_without_reader


def test_every_command_has_a_summary_and_help(capsys):
    commands = program.commands()
    assert "doctor" in commands
    assert not {"main", "arguments"} & commands.keys()
    assert program.main([]) == 0
    listed = capsys.readouterr().out
    for name, summary in commands.items():
        assert any(line.split(maxsplit=1) == [name, summary] for line in listed.splitlines())
        with pytest.raises(SystemExit, match="^0$"):
            program.main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: internvideo-jax {name} ")


def test_version(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        program.main(["--version"])
    assert capsys.readouterr().out == f"internvideo-jax {__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        program.main(["doctr"])
    assert "no command 'doctr'; did you mean 'doctor'?" in capsys.readouterr().err


def test_arguments_and_exit_code_are_handed_over(monkeypatch):
    from internvideo_jax.launch import doctor

    seen = []
    monkeypatch.setattr(doctor, "main", lambda argv: seen.append(argv) or 3)
    assert program.main(["doctor", "--json=x.json", "--", "-v"]) == 3
    assert seen == [["--json=x.json", "--", "-v"]]


def test_the_process_of_an_interrupted_command_ends_at_once(monkeypatch):
    from internvideo_jax.launch import arguments, doctor

    def ended(code):
        raise SystemExit(code)

    monkeypatch.setattr(arguments.os, "_exit", ended)
    monkeypatch.setattr(doctor, "main", lambda argv: 130)
    # Whoever calls `main` in a process of his own gets the code.
    assert program.main(["doctor"]) == 130
    monkeypatch.setattr(sys, "argv", ["internvideo-jax", "doctor"])
    with pytest.raises(SystemExit, match="^130$"):
        program.main()


def test_the_list_of_commands_comes_without_heavy_imports():
    code = (
        "import json, sys; from internvideo_jax.launch.main import main; main([]);"
        "print(json.dumps(sorted(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    modules = set(json.loads(run.stdout.splitlines()[-1]))
    assert not modules & {"jax", "flax", "av", "cv2", "tensorstore", "matplotlib"}


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["predict", "--help"], 0),
        (["convert", "--list"], 0),
        (["scan", "missing.csv"], 1),
        (["predict"], 2),
    ],
    ids=str,
)
def test_a_reader_that_leaves_does_not_change_the_exit_code(argv, code):
    result = run_without_reader(*argv)
    assert result.returncode == code, result.stderr
    assert "Broken pipe" not in result.stderr
