from pathlib import Path

import pytest

from tests.processes import run_on_eight_devices


@pytest.mark.slow
@pytest.mark.parametrize("cases", ["eight_device_cases.py", "eight_device_stage_cases.py"])
def test_on_eight_devices(cases):
    run_on_eight_devices(Path(__file__).with_name(cases))
