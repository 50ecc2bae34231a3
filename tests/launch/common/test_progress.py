"""Progress where there is no terminal."""

import sys

import pytest

from internvideo_jax.launch.common import progress
from internvideo_jax.launch.common.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, to be set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_few_seconds(clock, capsys):
    with Progress(15, "clip") as shown:
        for clock[0] in range(1, 16):
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "5 of 15 clips in 00:05",
        "10 of 15 clips in 00:10, 00:05 left",
        "15 of 15 clips in 00:15",
    ]


def test_the_remaining_time_does_not_count_what_came_before_the_first_clips(clock, capsys):
    """Two batches of ten at once, the first of them with a minute of compiling."""
    with Progress(30, "clip") as shown:
        for clock[0] in (60, 66):
            for _ in range(10):
                shown.update()
    lines = capsys.readouterr().err.splitlines()
    # At its first clip, the second batch is not counted yet.
    assert lines == ["1 of 30 clips in 01:00", "11 of 30 clips in 01:06, 00:11 left"]


def test_what_is_quick_is_silent(clock, capsys):
    with Progress(10, "clip") as shown:
        shown.update(10)
    assert capsys.readouterr() == ("", "")


def test_bytes_and_notes(clock, capsys):
    with Progress(2_000_000, "B", "converting") as shown:
        clock[0] = 6
        shown.set_postfix(unreadable=3)
        shown.update(1_500_000)
    assert capsys.readouterr().err == "converting: 1.50MB of 2.00MB, unreadable 3 in 00:06\n"


def test_an_unknown_total(clock, capsys):
    with Progress(None, "window") as shown:
        clock[0] = 7
        shown.update(1200)
    assert capsys.readouterr().err == "1,200 windows in 00:07\n"


def test_lines_go_where_they_belong(capsys):
    with Progress(1, "clip") as shown:
        shown.write("a note")
        shown.write("a result", file=sys.stdout)
    assert capsys.readouterr() == ("a result\n", "a note\n")


def test_a_terminal_has_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(3, "clip") as shown:
        clock[0] = 60
        shown.update(3)
    assert "3/3" in capsys.readouterr().err
