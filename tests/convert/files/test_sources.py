"""Finding the checkpoint in files and folders, and naming what is not one."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.sources import open_checkpoint


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def safetensors(path, **arrays):
    save_file(arrays, path)
    return path


@pytest.fixture
def save_torch(torch_file):
    def save(path, value=1.0):
        path.parent.mkdir(parents=True, exist_ok=True)
        return torch_file.save(path, {"module": {"w": torch_file.tensor(np.full(2, value))}})

    return save


def index(folder, weight_map, name="model.safetensors.index.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"weight_map": weight_map}))
    return folder / name


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.ckpt", "a.safetensors", "anything"])
@pytest.mark.parametrize("is_torch", [False, True])
def test_files_are_told_by_content(tmp_path, save_torch, name, is_torch):
    path = save_torch(tmp_path / name) if is_torch else safetensors(tmp_path / name, w=np.ones(2))
    checkpoint = open_checkpoint(str(path))
    assert (checkpoint.key, checkpoint["w"].read()[1]) == ("module" if is_torch else None, 1)


def test_a_folder_with_one_checkpoint(tmp_path, save_torch):
    save_torch(tmp_path / "run" / "best.pth", 3)
    for other in ("optimizer.pt", "training_args.bin", "rng_state_0.pth", "log.txt"):
        (tmp_path / "run" / other).write_bytes(b"other")
    assert open_checkpoint(tmp_path / "run")["w"].read()[0] == 3


def test_standard_names_come_first(tmp_path, save_torch):
    safetensors(tmp_path / "model.safetensors", w=np.full(2, 5.0))
    save_torch(tmp_path / "pytorch_model.bin")
    save_torch(tmp_path / "older.pth")
    assert open_checkpoint(tmp_path)["w"].read()[0] == 5


def test_a_whole_file_beside_shards_needs_a_choice(tmp_path):
    safetensors(tmp_path / "model.safetensors", w=np.zeros(1))
    safetensors(tmp_path / "model-00001-of-00001.safetensors", w=np.ones(1))
    path = index(tmp_path, {"w": "model-00001-of-00001.safetensors"})
    with pytest.raises(CheckpointError, match="model.safetensors and shards of another copy"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(path)["w"].read() == 1
    assert open_checkpoint(tmp_path / "model.safetensors")["w"].read() == 0


def test_several_checkpoints_are_listed(tmp_path, save_torch):
    save_torch(tmp_path / "a.pth")
    save_torch(tmp_path / "b.pth")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert f"choose one of\n  {tmp_path}/a.pth\n  {tmp_path}/b.pth" in str(caught.value)


def test_deepspeed_folders(tmp_path, save_torch):
    step = tmp_path / "run" / "global_step10"
    save_torch(step / "mp_rank_00_model_states.pt", 7)
    (step / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"other")
    (tmp_path / "run" / "latest").write_text("global_step10\n")
    for source in (step, tmp_path / "run"):
        assert open_checkpoint(source)["w"].read()[0] == 7
    save_torch(step / "mp_rank_01_model_states.pt")
    with pytest.raises(CheckpointError, match="split over processes"):
        open_checkpoint(step)


@pytest.mark.parametrize("tag", ["..", ".", "../elsewhere", "/etc", "missing", ""])
def test_the_latest_file_points_nowhere_else(tmp_path, save_torch, tag):
    save_torch(tmp_path / "elsewhere" / "mp_rank_00_model_states.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest").write_text(tag)
    with pytest.raises(CheckpointError, match="run holds no checkpoint"):
        open_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("by_index", [False, True])
def test_sharded_safetensors(tmp_path, by_index):
    safetensors(tmp_path / "s-00001-of-00002.safetensors", a=np.ones(2), tied=np.ones(1))
    safetensors(tmp_path / "s-00002-of-00002.safetensors", b=np.zeros(2), tied=np.zeros(1))
    path = index(
        tmp_path,
        {
            "a": "s-00001-of-00002.safetensors",
            "b": "s-00002-of-00002.safetensors",
            "tied": "s-00002-of-00002.safetensors",
        },
    )
    checkpoint = open_checkpoint(path if by_index else tmp_path)
    assert {name: t.read()[0] for name, t in checkpoint.items()} == {"a": 1, "b": 0, "tied": 0}


def test_sharded_torch_files(tmp_path, torch_file):
    for number in (1, 2):
        value = {f"w{number}": torch_file.tensor(np.full(2, number))}
        torch_file.save(tmp_path / f"pytorch_model-0000{number}-of-00002.bin", value)
    index(
        tmp_path,
        {"w1": "pytorch_model-00001-of-00002.bin", "w2": "pytorch_model-00002-of-00002.bin"},
        "pytorch_model.bin.index.json",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert {name: t.read()[0] for name, t in checkpoint.items()} == {"w1": 1, "w2": 2}


def test_all_faults_of_an_index_are_listed(tmp_path):
    safetensors(tmp_path / "one.safetensors", a=np.ones(2), loose=np.ones(1))
    safetensors(tmp_path / "two.safetensors", b=np.ones(2), loose=np.ones(1))
    path = index(
        tmp_path,
        {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors", "d": "three.bin"},
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    for part in (
        "shard three.bin is missing",
        "c is not in its shard two.safetensors",
        "loose is in two.safetensors and in another shard",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "shard",
    [
        "../a.safetensors",
        "/etc/passwd",
        "a/../../b.bin",
        r"..\a.bin",
        "C:a.bin",
        ".",
        "a//b",
        "",
        3,
    ],
)
def test_shards_outside_of_the_folder_are_refused(tmp_path, shard):
    safetensors(tmp_path / "a.safetensors", w=np.ones(1))
    path = index(tmp_path / "model", {"w": shard})
    with pytest.raises(CheckpointError, match="which is not in its folder"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "at most 64 levels"),
        ("[]", "not an index of shards"),
        ('{"weight_map": 3}', "not an index of shards: .* found int"),
        ('{"weight_map": {}}', "not an index of shards: .* found none"),
        ('{"weight_map": {"a": []}}', "refers to a list"),
        ('{"weight_map": {"a": 2.0}}', "refers to a float"),
    ],
)
def test_damaged_indices(tmp_path, text, reason):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(tmp_path)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "model.pth")
    (tmp_path / "null.pth").symlink_to(os.devnull)
    for name, kind in (("model.pth", "pipe"), ("null.pth", "device")):
        with pytest.raises(CheckpointError, match=f"a regular file, found a {kind}"):
            open_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)


def test_shards_of_distributed_checkpoints_say_how_to_gather_them(tmp_path):
    (tmp_path / "__0_0.distcp").write_bytes(b"shard")
    with pytest.raises(CheckpointError, match="dcp_to_torch"):
        open_checkpoint(tmp_path)


def test_shards_alone_are_not_a_checkpoint(tmp_path):
    shard = safetensors(tmp_path / "model-00001-of-00002.safetensors", a=np.ones(2))
    with pytest.raises(CheckpointError, match=r"but not their \*\.index\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="one shard of several"):
        open_checkpoint(shard)


LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (LEGACY, r"before 1\.6.*torch\.save\(torch\.load\("),
        (b"\0" * 257 + b"ustar\x0000" + b"\0" * 100, r"before 1\.6"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n <!doctype html><html>", "a web page"),
        (b"\x80\x04\x95\x10", "a bare pickle"),
        (b"\x93NUMPY\x01\x00", r"not a checkpoint .* starts with b'\\x93NUMPY"),
        (b"PK\x03\x04 and no more", "interrupted download"),
    ],
)
def test_what_is_not_a_checkpoint_is_named(tmp_path, content, reason):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(path)


def test_missing_files_are_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(
        "internvideo_jax.convert.files.hub.fetch", lambda *_: pytest.fail("network")
    )
    for source in ("no/such.pth", "./no/such", "nothing", "no/such/file.safetensors"):
        with pytest.raises(CheckpointError, match="does not exist; expected a file, a folder"):
            open_checkpoint(source)


def test_a_key_is_for_files_that_have_places(tmp_path):
    path = safetensors(tmp_path / "a.safetensors", w=np.ones(1))
    with pytest.raises(CheckpointError, match="no places inside it to choose from"):
        open_checkpoint(path, key="model")
