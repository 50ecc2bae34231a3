from pathlib import Path

import pytest

from tests.processes import run_on_eight_devices


@pytest.mark.slow
def test_on_eight_devices():
    run_on_eight_devices(Path(__file__).with_name("eight_device_cases.py"))
