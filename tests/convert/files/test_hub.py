"""Checkpoints from a hub: a real client against a small server on this machine."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.hub import Address, parse_address
from internvideo_jax.convert.files.sources import open_checkpoint
from tests.fake_hub import COMMIT


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("owner/name", Address("owner/name")),
        ("OpenGVLab/Stage1-1B_v1.0", Address("OpenGVLab/Stage1-1B_v1.0")),
        ("owner/name@v1.0", Address("owner/name", "v1.0")),
        ("hf://owner/name", Address("owner/name")),
        ("hf://owner/name/a.pth", Address("owner/name", None, "a.pth")),
        ("hf://owner/name@abc/deep/a.pth", Address("owner/name", "abc", "deep/a.pth")),
        ("hf://owner/weights.pth", Address("owner/weights.pth")),
        ("owner/weights.pth", None),
        ("owner/name/a.pth", None),
        ("/owner/name", None),
        ("./owner/name", None),
        ("../name", None),
        ("name", None),
        ("hf://name", None),
        ("C:\\models\\a.pth", None),
        ("", None),
    ],
)  # fmt: skip
def test_addresses(source, address):
    assert parse_address(source, [".pth"]) == address


def test_the_only_checkpoint_of_a_repository(hub, tmp_path, torch_file):
    file = torch_file.save(tmp_path / "a.pth", {"model": {"w": torch_file.tensor(np.arange(3.0))}})
    hub.files = {"README.md": b"#", "1B_ft_k400_f8.pth": file.read_bytes(), "config.json": b"{}"}
    checkpoint = open_checkpoint("owner/name")
    np.testing.assert_array_equal(checkpoint["w"].read(), [0, 1, 2])
    # And what may name its classes.
    assert hub.requested == ["1B_ft_k400_f8.pth", "config.json"]
    assert COMMIT in str(checkpoint.path)


@pytest.mark.parametrize(
    "source", ["hf://owner/name@main", "hf://owner/name/model.safetensors.index.json"]
)
def test_shards_come_with_their_index_and_nothing_else(hub, source):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors",
                            "b": "model-00002-of-00002.safetensors"}}  # fmt: skip
    hub.files = {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": save({"a": np.ones(2)}),
        "model-00002-of-00002.safetensors": save({"b": np.zeros(2)}),
        "pytorch_model.bin": b"the same again",
        "video.mp4": b"large",
    }
    checkpoint = open_checkpoint(source)
    assert {name: tensor.read()[0] for name, tensor in checkpoint.items()} == {"a": 1, "b": 0}
    assert sorted(hub.requested) == [name for name in sorted(hub.files) if name.startswith("model")]


def test_one_file_of_several(hub):
    hub.files = {
        "stage1/S14/pytorch_model.bin": b"PK",
        "stage1/B14/model.safetensors": save({"w": np.ones(2)}),
    }
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("owner/name")
    assert "several checkpoints" in str(caught.value)
    assert "hf://owner/name/stage1/S14/pytorch_model.bin" in str(caught.value)
    assert hub.requested == []
    checkpoint = open_checkpoint("hf://owner/name/stage1/B14/model.safetensors")
    assert list(checkpoint) == ["w"]
    assert hub.requested == ["stage1/B14/model.safetensors"]


def test_what_was_downloaded_serves_without_a_network(hub, offline):
    hub.files = {"model.safetensors": save({"w": np.ones(2)})}
    open_checkpoint("owner/name")
    hub.stop()
    assert open_checkpoint("owner/name")["w"].read()[1] == 1
    offline()
    assert open_checkpoint("owner/name")["w"].read()[1] == 1
    assert open_checkpoint("hf://owner/name/model.safetensors")["w"].read()[1] == 1
    assert hub.requested == ["model.safetensors"]


@pytest.mark.parametrize("source", ["hf://owner/name", "hf://owner/name/model.safetensors"])
def test_no_network_and_nothing_downloaded(hub, caplog, source):
    hub.stop()
    with pytest.raises(CheckpointError, match="was not downloaded before; go online .*give the fi"):
        open_checkpoint(source)
    assert "Retrying" not in caplog.text
    # It may have been meant as a path.
    with pytest.raises(CheckpointError, match="go online.*nor is there a local file or folder own"):
        open_checkpoint("owner/name")


@pytest.mark.parametrize("source", ["owner/name", "hf://owner/name/model.safetensors"])
def test_offline_mode_is_respected(hub, offline, source):
    hub.files = {"model.safetensors": save({"w": np.ones(2)})}
    offline()
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        open_checkpoint(source)
    assert hub.requested == []


@pytest.mark.parametrize(
    ("source", "gated", "reason"),
    [
        ("owner/name", True, r"gated: accept its terms at https://huggingface\.co/owner/name"),
        ("hf://owner/name/model.safetensors", True, "gated: accept its terms"),
        ("owner/other", False, "does not exist or is private"),
        ("hf://owner/other/model.safetensors", False, "does not exist or is private"),
        ("owner/name@v9", False, "no branch, tag or commit 'v9'"),
        ("hf://owner/name/lost.safetensors", False, "is not in the repository; its files are"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(hub, source, gated, reason):
    hub.files = {"model.safetensors": save({"w": np.ones(2)})}
    hub.gated = gated
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(source)


def test_an_index_cannot_fetch_from_elsewhere(hub):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    hub.files = {"model.safetensors.index.json": json.dumps(index).encode()}
    with pytest.raises(CheckpointError, match=r"'\.\./\.\./secret\.safetensors', which is not in"):
        open_checkpoint("owner/name")


def test_a_repository_without_weights(hub):
    hub.files = {"README.md": b"coming soon", "training_args.bin": struct.pack("<I", 0)}
    with pytest.raises(CheckpointError, match="hf://owner/name holds no checkpoint"):
        open_checkpoint("owner/name")
