import os

import pytest

from internvideo_jax.environment import is_debugging, printable, usable_cpus


def test_usable_cpus():
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("0", False), ("1", True)])
def test_debugging_is_asked_for(monkeypatch, value, expected):
    monkeypatch.delenv("INTERNVIDEO_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("INTERNVIDEO_DEBUG", value)
    assert is_debugging() is expected


def test_terminals_are_given_no_control_characters():
    assert printable("a\tb\nc é") == "a\tb\nc é"
    assert printable("\x1b[2Jx\r\x07\u202e") == r"\x1b[2Jx\r\x07\u202e"
