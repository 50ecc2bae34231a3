"""Options of the golden tests; one test item per golden file, its path as id.

The reference data beside the checkout belongs to the slow suite, unless its folder is asked for.
There programs are optimised as users' are, while `make test` compiles them as fast as it can.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_COMMITTED = _HERE / "data"
# `golden`, `comparison` and `checkers` are shared by the modules here and by nothing else.
sys.path.insert(0, str(_HERE))
_FILES = pytest.StashKey[list[Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("goldens")
    group.addoption(
        "--goldens",
        metavar="DIR",
        help="folder with INDEX.json; default: the committed data and $INTERNVIDEO_SHARED/goldens",
    )
    group.addoption(
        "--goldens-require",
        metavar="NAMES",
        default="",
        help="comma-separated systems or kinds that must have files and checkers",
    )
    group.addoption(
        "--goldens-exclude",
        metavar="NAMES",
        default="",
        help="comma-separated kinds (system.family or family) or systems to leave out",
    )


def pytest_configure(config: pytest.Config) -> None:
    from golden import BadGolden, read_index, select

    # The defaults serve runs over all of tests/, for which pytest reads this file too late to
    # register options.
    folder = config.getoption("--goldens", None)
    shared = os.environ.get("INTERNVIDEO_SHARED")
    roots = [Path(folder)] if folder else [_COMMITTED]
    if shared and not folder:
        roots.append(Path(shared) / "goldens")
    names = {
        option: [n for n in config.getoption(f"--goldens-{option}", "").split(",") if n]
        for option in ("require", "exclude")
    }
    try:
        config.stash[_FILES] = select([f for root in roots for f in read_index(root)], **names)
    except BadGolden as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        for path in sorted((_HERE / "checkers").glob("*.py")):
            importlib.import_module(f"checkers.{path.stem}")
        asked = metafunc.config.getoption("--goldens", None)
        cases = [
            pytest.param(file, id=file.name, marks=[pytest.mark.slow] * _is_slow(file.name))
            if asked or file.path.is_relative_to(_COMMITTED)
            else pytest.param(file, id=f"shared/{file.name}", marks=pytest.mark.slow)
            for file in metafunc.config.stash[_FILES]
        ]
        metafunc.parametrize("golden_file", cases)


def _is_slow(name: str) -> bool:
    """Whether a golden takes over ten seconds: gradients of whole models do."""
    return Path(name).stem in (
        "stage1_full_step",
        "bert_fusion_encoder_mask",
        "beats_graddecay06",
        "model_av_audio",
    )
