import argparse
import errno
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvideo_jax import environment
from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments

CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config(size="small"):
    if size not in ("small", "large"):
        raise ValueError(f"expected small or large, found {size!r}")
    return ConfigDict({
        "width": 64 if size == "large" else 8,
        "rate": 0.5,
        "name": "a",
        "layers": (1, 2),
        "is_causal": False,
        "scale": config_dict.placeholder(float),
        "unset": None,
        "model": {"depth": 2},
    })
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def parse(*argv):
    parser = argparse.ArgumentParser()
    arguments.add_config_argument(parser)
    return arguments.parse_config(*parser.parse_known_args(list(map(str, argv))))


def test_overrides_take_the_type_of_their_field(config_file):
    config = parse(
        f"--config={config_file}:large",
        "--config.rate=2",
        "--config.layers=(3,)",
        "--config.is_causal=true",
        "--config.scale=0.25",
        "--config.model.depth=4",
    )
    assert config.width == 64
    assert isinstance(config.rate, float)
    assert config.layers == (3,)
    assert config.is_causal is True
    assert config.scale == 0.25
    assert config.model.depth == 4
    assert config.is_locked


def test_what_is_unset_may_be_left_so(config_file):
    config = parse(f"--config={config_file}", "--config.scale=None", "--config.unset=None")
    assert (config.scale, config.unset) == (None, None)
    assert parse(f"--config={config_file}", "--config.scale=None", "--config.scale=2").scale == 2.0


def test_a_part_of_another_may_be_left_out(tmp_path):
    path = tmp_path / "nested.py"
    path.write_text(CONFIG.replace('{"depth": 2}', '{"depth": 2, "audio": {"depth": 3}}'))
    config = parse(f"--config={path}", "--config.model.audio=None", "--config.model.depth=4")
    assert config.model.to_dict() == {"depth": 4, "audio": None}
    assert config.is_locked
    with pytest.raises(arguments.UsageError, match=r"model\.audio\.depth: .* has no such field"):
        parse(f"--config={path}", "--config.model.audio=None", "--config.model.audio.depth=4")
    with pytest.raises(TypeError):
        config.model.depth = "4"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--config.widht=9"],
            "--config.widht: {file} has no such field; did you mean --config.width?",
        ),
        (["--config.model.dept=9"], "no such field; did you mean --config.model.depth?"),
        (["--config.depth=9"], "no such field; did you mean --config.model.depth?"),
        (["--config.zzz=9"], "--config.zzz: {file} has no such field"),
        (["--config.width"], "expected --config.width=VALUE"),
        (["--config.width=nine"], "--config.width: expected int, found 'nine'"),
        (["--config.rate=1", "--config.scale=a=b"], "--config.scale: expected float, found 'a=b'"),
        (["--config.is_causal=maybe"], "--config.is_causal: expected bool, found 'maybe'"),
        (["--config.model=3"], "is not a dict"),
        (["--config.model=None"], "is not a dict"),
        (["--config.unset=9"], "config.unset"),
        (["--confg.width=9"], "unknown argument '--confg.width=9'"),
        (["file.mp4"], "unknown argument 'file.mp4'"),
    ],
)
def test_arguments_that_do_not_fit(config_file, argv, message):
    with pytest.raises(arguments.UsageError, match=re.escape(message.format(file=config_file))):
        parse(f"--config={config_file}", *argv)


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("def get_config(): ...", ":b14", "get_config takes no argument"),
        ("def get_config(size): ...", "", "get_config takes an argument"),
        ("def get_config(): return {}", "", "an ml_collections.ConfigDict, found dict"),
        ("config = {}", "", "defines no function get_config"),
    ],
)
def test_files_that_are_no_configs(tmp_path, text, argument, message):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(arguments.UsageError, match=message):
        parse(f"--config={tmp_path}/bad.py{argument}")


def test_a_config_of_the_package_is_found_by_its_file_name():
    with pytest.raises(arguments.UsageError, match=r"did you mean .*configs/stage1/finetune\.py"):
        parse("--config=finetune.py:tiny,custom")


def test_configs_come_from_the_package_unless_the_working_directory_has_them(tmp_path, monkeypatch):
    from internvideo_jax import configs

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "tiny.py").write_text(CONFIG)
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "package" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    assert parse("--config=configs/tiny.py").width == 8
    with pytest.raises(arguments.UsageError, match=r"did you mean 'configs/tiny\.py'"):
        parse("--config=configs/tinny.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text(CONFIG.replace("else 8", "else 16"))
    assert parse("--config=configs/tiny.py").width == 16


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("expected 1, found 2"), 2, "expected 1, found 2"),
        (FileNotFoundError(2, "No such file", "x.mp4"), 2, "x.mp4: No such file"),
        (OSError("no number"), 2, "no number"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (arguments.Terminated(), 143, "terminated"),
    ],
)
def test_expected_errors_are_one_line(error, code, message, capsys, monkeypatch):
    monkeypatch.delenv("INTERNVIDEO_DEBUG", raising=False)

    @arguments.command
    def main(argv=None):
        raise error

    assert main([]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"internvideo-jax test_arguments: {message}\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_cleans_up_after_a_signal(number, code):
    cleaned = []

    @arguments.command
    def main(argv=None):
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            # Whoever is impatient does not disturb it.
            for again in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), again)
            time.sleep(0.01)
            cleaned.append(True)
        return 0

    assert main([]) == code
    assert cleaned
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize(("error", "code"), [("KeyboardInterrupt", 130), ("Terminated", 143)])
def test_an_interrupted_process_ends_without_finalising_the_interpreter(error, code):
    program = (
        "import atexit, sys; from internvideo_jax.launch import arguments;"
        "from internvideo_jax.launch.arguments import Terminated\n"
        "atexit.register(print, 'finalised')\n"
        "@arguments.command\n"
        "def main(argv=None):\n"
        "    print('working')\n"
        f"    raise {error}\n"
        "sys.exit(arguments.end_process(main([])))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (code, "working\n")


def test_counts_are_at_least_one():
    assert arguments.positive_int("12") == 12
    for text in ("0", "-4", "1.5", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"at least 1, found '{text}'"):
            arguments.positive_int(text)


def test_bugs_and_debugging_keep_the_traceback(monkeypatch):
    @arguments.command
    def main(argv=None):
        raise {"bug": RuntimeError, "user": ValueError}[argv[0]]

    with pytest.raises(RuntimeError):
        main(["bug"])
    monkeypatch.setenv("INTERNVIDEO_DEBUG", "1")
    with pytest.raises(ValueError):  # noqa: PT011 - raised here, without a message
        main(["user"])


def test_home_is_the_variable_or_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for value, expected in (("here", Path.cwd() / "here"), ("", tmp_path / "internvideo_jax")):
        monkeypatch.setenv("INTERNVIDEO_HOME", value)
        assert environment.home() == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environment.home() == Path.home() / ".cache" / "internvideo_jax"


def test_json_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"x": [1, 2.5]})
    assert json.loads(path.read_text()) == {"x": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": math.nan})

    def full_disk(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="free disk.*make room") as caught:
        write_json(path, {"x": 2})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert json.loads(path.read_text()) == {"x": [1, 2.5]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_output_folders_are_new_or_empty(tmp_path):
    assert arguments.new_output_dir(tmp_path / "a" / "b").is_dir()
    assert arguments.new_output_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(arguments.UsageError, match="file: cannot make this folder .File exists"):
        arguments.new_output_dir(tmp_path / "file")
    with pytest.raises(arguments.UsageError, match="x: cannot make this folder .Not a directory"):
        arguments.new_output_dir(tmp_path / "file" / "x")
    with pytest.raises(arguments.UsageError, match="exists and is not empty"):
        arguments.new_output_dir(tmp_path)


def test_logs_are_plain_lines(capsys):
    logger = logging.getLogger("internvideo_jax.test")

    @arguments.command
    def inner(argv=None):
        logger.info("loaded %d arrays", 3)
        return 0

    @arguments.command
    def outer(argv=None):
        logger.warning("clip replaced")
        return inner([])

    assert outer([]) == 0
    assert capsys.readouterr().err == "warning: clip replaced\nloaded 3 arrays\n"
    logger.info("nobody listens")
    assert capsys.readouterr().err == ""
