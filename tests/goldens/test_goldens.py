"""Our models and functions against what the original ones compute, one item per golden file."""

import pytest
from golden import CHECKERS, BadGolden, GoldenFile, check


def test_golden(golden_file: GoldenFile) -> None:
    missing = golden_file.kind not in CHECKERS
    if missing and not golden_file.required:
        pytest.skip(f"no checker for {golden_file.kind}")
    assert not missing, f"{golden_file.name} is required, but {golden_file.kind} has no checker"
    try:
        check(golden_file)
    except BadGolden as error:
        pytest.fail(str(error), pytrace=False)
    except pytest.skip.Exception as skipped:
        if golden_file.required:
            pytest.fail(f"required, but skipped: {skipped}", pytrace=False)
        raise
