from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec as P

from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import partition_spec, shard_map_logical
from tests.processes import run_on_eight_devices


@pytest.mark.slow
def test_on_eight_devices():
    run_on_eight_devices(Path(__file__).with_name("eight_device_cases.py"))


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        (("layers", "embed", "qkv", "heads", "head_dim"), P(None, "fsdp", None, "tensor", None)),
        (("layers", "mlp", "embed"), P(None, "tensor", "fsdp")),
        (("patch", "patch", "patch", "patch", "embed"), P(None, None, None, None, "fsdp")),
        (("batch", "tokens", "embed_act"), P(("data", "fsdp"), "context", None)),
        # Both want `tensor`; "mlp" has the earlier rule.
        (("decoders", "mlp", "target"), P(None, "tensor", None)),
        # `fsdp` is spent on the batch.
        (("batch", None, "embed"), P(("data", "fsdp"), None, None)),
        ((), P()),
    ],
)
def test_partition_spec(axes, spec):
    assert partition_spec(axes, DEFAULT_RULES) == spec


def test_a_name_without_rule_is_an_error():
    with pytest.raises(ValueError, match="found 'embd' in .*; correct the name"):
        partition_spec(("layers", "embd"), DEFAULT_RULES)


def test_one_device_needs_no_mesh():
    x = jax.numpy.arange(6.0).reshape(2, 3)
    assert shard_map_logical(lambda x: x, (("batch", None),), ("batch", None))(x) is x
