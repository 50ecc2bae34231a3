"""Our models and functions against what the original ones compute, one item per golden file."""

import pytest
from golden import BadGolden, GoldenFile, check


def test_golden(golden_file: GoldenFile) -> None:
    problem = None
    try:
        check(golden_file)
    except BadGolden as error:
        problem = str(error)
    except pytest.skip.Exception as skipped:
        if not golden_file.required:
            raise
        problem = f"{golden_file.name} is required, but skipped: {skipped}"
    if problem:
        pytest.fail(problem, pytrace=False)
