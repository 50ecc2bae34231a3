"""Our models and functions against what the original ones compute, one item per golden file."""

import pytest
from golden import GoldenFile, check


def test_golden(golden_file: GoldenFile) -> None:
    try:
        check(golden_file)
    except pytest.skip.Exception as skipped:
        if golden_file.required:
            pytest.fail(f"{golden_file.name} is required, but skipped: {skipped}", pytrace=False)
        raise
