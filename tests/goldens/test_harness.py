"""The harness itself: what it refuses, selects, and tolerates."""

import json
import os
import subprocess
import sys
from pathlib import Path

import golden
import ml_dtypes
import numpy as np
import pytest
from comparison import (
    assert_gradients_close,
    assert_table_close,
    assert_tensor_close,
    assert_tensors_close,
)
from golden import BadGolden, Config, Golden, GoldenFile, read_index, select
from safetensors.numpy import save_file

HERE = Path(__file__).parent


def write(folder: Path, index: object, **files: object) -> Path:
    """A folder of goldens: an index, and files of JSON tables or tensors with an option `dim`."""
    (folder / "INDEX.json").write_text(json.dumps(index))
    for name, contents in files.items():
        if isinstance(contents, dict) and "in/x" in contents:
            save_file(contents, folder / f"{name}.safetensors", {"config": '{"dim": 3}'})
        else:
            (folder / f"{name}.json").write_text(json.dumps(contents))
    return folder


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (["a.json"], "JSON object"),
        ({"a.json": "kind_without_system"}, "<system>.<family>"),
    ],
)
def test_bad_indexes_are_refused(tmp_path, index, message) -> None:
    with pytest.raises(BadGolden, match=message):
        read_index(write(tmp_path, index))
    (tmp_path / "INDEX.json").unlink()
    with pytest.raises(BadGolden, match=r"INDEX\.json"):
        read_index(tmp_path)


FILES = [GoldenFile(Path(n), n, k) for n, k in [("1", "a.x"), ("2", "a.y"), ("3", "b.x")]]


def chosen(require: str = "", exclude: str = "") -> dict[str, bool]:
    return {f.name: f.required for f in select(FILES, require.split(), exclude.split())}


def test_selection_by_system_kind_and_family() -> None:
    assert chosen() == {"1": False, "2": False, "3": False}
    assert chosen(require="a") == {"1": True, "2": True, "3": False}
    assert chosen(require="x") == {"1": True, "2": False, "3": True}
    assert chosen(require="a b.x", exclude="a.x") == {"2": True, "3": True}


@pytest.mark.parametrize(
    ("require", "exclude", "option"),
    [("c", "", "require"), ("", "a.z", "exclude"), ("a.x", "x", "require")],
)
def test_names_that_fit_nothing_are_refused(require, exclude, option) -> None:
    with pytest.raises(BadGolden, match=f"goldens-{option}"):
        chosen(require, exclude)


def test_options_are_watched() -> None:
    config = Config({"dim": 3, "deep": {"heads": 2, "bias": True}, "note": "x"}, "config")
    assert config.unread() == ["config.deep", "config.dim", "config.note"]
    assert (config["dim"], config["deep"]["heads"], config.get("absent", 7)) == (3, 2, 7)
    config.ignore("note")
    assert config.unread() == ["config.deep.bias"]
    config["deep"].expect(bias=True, absent=1)
    assert config.unread() == []
    with pytest.raises(AssertionError, match="does not know {'dim': 3}"):
        config.expect(dim=4)
    with pytest.raises(KeyError, match="no option 'width'"):
        config["width"]


def test_tensors_are_watched(tmp_path) -> None:
    x = np.arange(3.0)
    folder = write(tmp_path, {}, case={"in/x": x, "out/a": x, "out/b/c": x})
    case = Golden(GoldenFile(folder / "case.safetensors", "case", "s.a"))
    assert case.names("out/") == ["out/a", "out/b/c"]
    assert case.unread() == ["config.dim", "in/x", "out/a", "out/b/c"]
    assert list(case.group("out/")) == ["a", "b/c"]
    assert case.config["dim"] == 3
    assert "in/x" in case
    assert case.unread() == ["in/x"]
    with pytest.raises(KeyError, match="no tensor 'in/y'"):
        case["in/y"]


def test_what_a_checker_leaves_unread_is_a_failure(tmp_path, monkeypatch) -> None:
    folder = write(tmp_path, {}, case={"in/x": np.ones(2), "out/y": np.ones(2)})
    monkeypatch.setitem(golden.CHECKERS, "s.a", lambda case: case["in/x"])
    with pytest.raises(AssertionError, match=r"did not look at config\.dim, out/y"):
        golden.check(GoldenFile(folder / "case.safetensors", "case", "s.a"))


def test_one_checker_per_kind() -> None:
    kind = next(iter(golden.CHECKERS), None)
    if kind is None:
        golden.checker("s.a")(print)
        kind = "s.a"
    with pytest.raises(ValueError, match="two checkers"):
        golden.checker(kind)(print)


def test_floats_are_compared_to_the_scale_of_the_tensor() -> None:
    expected = np.array([1000.0, 1e-3], np.float32)
    assert_tensor_close("x", expected + np.float32(9e-3), expected)
    with pytest.raises(AssertionError, match=r"x: error 0\.02, allowed 0\.01 \(scale 1e\+03\)"):
        assert_tensor_close("x", expected.astype(np.float64) + 0.02, expected)
    assert_tensor_close("x", expected.astype(np.float64) + 0.02, expected, tolerance=1e-4)


def test_all_misfits_are_listed() -> None:
    ones = np.ones(2, np.float32)
    actual = {"a": ones, "b": 2 * ones, "c": np.ones(3), "ours": ones, "i": ones}
    expected = {"a": ones, "b": ones, "c": ones, "theirs": ones, "i": np.ones(2, int)}
    with pytest.raises(AssertionError) as failure:
        assert_tensors_close(actual, expected)
    lines = str(failure.value).splitlines()
    assert lines[0] == "5 misfits"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["ours", "theirs", "b", "c", "i"]


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (np.array([1.0, 2.0]), np.array([1, 2])),
        (np.array([True, False]), np.array([True, True])),
        (np.array([np.inf, 1.0]), np.array([1.0, 1.0])),
        (np.array([1, 1]), np.array([1.0, 1.0])),
    ],
)
def test_inexact_or_non_finite_values_fail(actual, expected) -> None:
    with pytest.raises(AssertionError):
        assert_tensor_close("x", actual, expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_allows_one_unit_in_the_last_place(dtype) -> None:
    expected = np.array([1.0, -1.0, 0.0, 100.0], dtype)
    ulp = np.array([1, 1, 1, 1], np.int16)
    near, far = ((expected.view(np.int16) + n * ulp).view(dtype) for n in (1, 2))
    assert_tensor_close("x", near, expected)
    assert_tensor_close("x", near.astype(np.float32), expected)
    with pytest.raises(AssertionError, match="2 units in the last place"):
        assert_tensor_close("x", far, expected)


def test_gradients_have_a_floor_from_the_files_median() -> None:
    expected = {"a": np.ones(2), "b": np.full(2, 3.0), "noise": np.full(2, 1e-9)}
    actual = {**expected, "noise": np.full(2, 9e-9)}
    assert_gradients_close(actual, expected)
    with pytest.raises(AssertionError, match=r"noise: error 2e-08, allowed 1e-08"):
        assert_gradients_close({**actual, "noise": np.full(2, 2.1e-8)}, expected)


def test_analytic_zeros_are_named_and_must_vanish_on_both_sides() -> None:
    expected = {"a": np.ones(2), "b": np.full(2, 3.0), "zero": np.full(2, 1e-7)}
    actual = {**expected, "zero": np.full(2, -1e-7)}
    with pytest.raises(AssertionError, match="zero: error 2e-07"):
        assert_gradients_close(actual, expected)
    assert_gradients_close(actual, expected, zero=["zero", "absent"])
    with pytest.raises(AssertionError, match=r"zero \(ours\): error 0\.0001, allowed 1e-05"):
        assert_gradients_close({**actual, "zero": np.full(2, 1e-4)}, expected, zero=["zero"])
    with pytest.raises(AssertionError, match=r"zero \(reference\)"):
        assert_gradients_close(actual, {**expected, "zero": np.full(2, 1e-4)}, zero=["zero"])


def test_tables() -> None:
    expected = {"lr": [1e-7, 2.0], "name": "x", "n": 3, "none": None, "flag": True}
    assert_table_close({**expected, "lr": (1e-7 * (1 + 5e-7), 2)}, expected)
    for change in (
        {"lr": [1.1e-7, 2.0]},
        {"lr": [1e-7]},
        {"name": "y"},
        {"flag": 1},
        {"more": 1},
    ):
        with pytest.raises(AssertionError, match=rf"table\.{next(iter(change))}"):
            assert_table_close({**expected, **change}, expected)


@pytest.mark.slow
def test_the_command_line(tmp_path) -> None:
    """Items, skips and failures of a real run, in a process of its own."""
    index = {"s/known.json": "internvideo2_stage1.k710_head_maps", "s/other.json": "s.other"}
    write(tmp_path, index)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "other.json").write_text("{}")

    def run(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-q"]
        command += [str(HERE / "test_goldens.py"), f"--goldens={tmp_path}", *options]
        environment = {k: v for k, v in os.environ.items() if k != "INTERNVIDEO_SHARED"}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=HERE.parent.parent
        )
        return done.returncode, done.stdout + done.stderr

    code, output = run()
    assert code == 1
    assert "test_golden[s/known.json]" in output
    assert "No such file or directory" in output
    assert "no checker for s.other" in output

    code, output = run("--goldens-exclude=k710_head_maps", "--goldens-require=s")
    assert code == 1
    assert "other.json is required, but skipped: no checker for s.other" in output

    code, output = run("--goldens-require=viclip")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "no golden file has the system or kind viclip" in output
