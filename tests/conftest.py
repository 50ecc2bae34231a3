"""Settings that hold for every test."""

import os

import hypothesis

# The dev extra's libtpu would look for a TPU in every process of the suite.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A shared two-core machine pauses at will: the same examples every time, and no time limit on each.
hypothesis.settings.register_profile("internvideo", deadline=None, derandomize=True)
hypothesis.settings.load_profile("internvideo")
