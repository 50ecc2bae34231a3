"""The command `convert`, from arguments to exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from internvideo_jax import launch
from internvideo_jax.convert.files.sources import open_checkpoint
from internvideo_jax.launch import convert
from internvideo_jax.saved_model import load

CHECKPOINT = Path(launch.__file__).parent / "assets" / "demo_checkpoint.pth"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The demo's checkpoint, converted by the command."""
    output = tmp_path_factory.mktemp("converted") / "model"
    assert convert.main([str(CHECKPOINT), f"--output={output}"]) == 0
    return output


def _state():
    return {name: np.array(tensor.read()) for name, tensor in open_checkpoint(CHECKPOINT).items()}


# The options that the demo's checkpoint stores beside its tensors.
OPTIONS = [
    "--option=num_heads=3",
    "--option=attn_pool_num_heads=4",
    "--option=num_frames=4",
]


def test_one_line_says_that_all_tensors_are_loaded(capsys, tmp_path):
    assert convert.main([str(CHECKPOINT), f"--output={tmp_path / 'model'}", "--sha256"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "demo_checkpoint.pth: video_classifier, width 48, depth 3, 3 heads, 4 frames of 56x56,"
        " 7 classes"
    )
    assert lines[1] == "67 tensors loaded, 0 missing"
    assert lines[2].startswith("wrote ")
    assert lines[3].startswith("sha256 ")


def test_there_and_back_again(model, capsys, tmp_path):
    back = tmp_path / "back.safetensors"
    assert convert.main([str(model), "--to_pytorch", f"--output={back}"]) == 0
    assert "67 tensors" in capsys.readouterr().out
    state = _state()
    found = safetensors.numpy.load_file(back)
    assert found.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_encoder_alone_for_longer_and_larger_clips(capsys, tmp_path):
    output = tmp_path / "model"
    argv = [str(CHECKPOINT), f"--output={output}", "--architecture=video_vit"]
    assert convert.main([*argv, "--frames=8", "--image_size=84"]) == 0
    text = capsys.readouterr().out
    assert "video_vit, width 48, depth 3, 3 heads, 8 frames of 84x84" in text
    assert "10 ignored (classifier head, left out on request)" in text
    assert "pos_embed: positions resized 4x4x4 -> 8x6x6" in text
    assert "sha256" not in text
    loaded = load(output)
    assert loaded.config.num_frames == loaded.preprocessing.video.num_frames == 8
    assert loaded.config.image_size == loaded.preprocessing.video.image_size == 84


def test_what_an_export_does_not_restore_is_printed(capsys, tmp_path):
    output = tmp_path / "model"
    argv = [str(CHECKPOINT), f"--output={output}", "--architecture=video_vit"]
    assert convert.main([*argv, "--frames=8"]) == 0
    back = tmp_path / "back.safetensors"
    assert convert.main([str(output), "--to_pytorch", f"--output={back}"]) == 0
    text = capsys.readouterr().out
    assert "not restored, classifier head, left out on request: " in text
    assert "head.weight" in text
    assert "not as it was, pos_embed: positions resized 4x4x4 -> 8x4x4" in text


def test_an_existing_output_is_refused_before_anything_is_read(model, capsys):
    before = sorted(model.rglob("*"))
    assert convert.main(["no/such/file.pth", f"--output={model}"]) == 2
    assert "exists" in capsys.readouterr().err
    assert sorted(model.rglob("*")) == before


def test_options_are_values_or_texts(capsys, tmp_path):
    state_file = tmp_path / "tiny.safetensors"
    safetensors.numpy.save_file(_state(), state_file)
    output = tmp_path / "model"
    argv = [str(state_file), f"--output={output}", *OPTIONS, "--option=mlp_activation=gelu_erf"]
    assert convert.main(argv) == 0
    assert load(output).config.encoder.activation == "gelu_erf"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([str(CHECKPOINT)], "expected --output"),
        (["--output=x"], "expected a checkpoint"),
        (["nowhere.pth", "--output=x"], "nowhere.pth does not exist"),
        ([str(CHECKPOINT), "--output=x", "--option=num_heads"], "--option=NAME=VALUE"),
        ([str(CHECKPOINT), "--output=x", "--option=num_head=3"], "did you mean 'num_heads'"),
        ([str(CHECKPOINT), "--output=x", "--model=internvideo2-b14-k40"], "internvideo2-b14-k400"),
        ([str(CHECKPOINT), "--output=x", "--model=internvideo2-b14-k400"], "this is another file"),
        ([str(CHECKPOINT), "--output=x", "--architecture=vit"], "video_vit"),
        ([str(CHECKPOINT), "--output=x", "--image_size=57"], "pass --image_size=56"),
        ([str(CHECKPOINT), "--output=x", "--tubelet_size=3"], "pass --frames=3"),
        ([str(CHECKPOINT), "--output=x", "--num_classes=400"], "--new_head"),
        ([str(CHECKPOINT), "--output=x", "--option=num_heads=0"], "num_heads: expected int"),
        ([str(CHECKPOINT), "--output=x", "--new_head"], "pass --num_classes=N"),
        (["a", "b", "--to_pytorch", "--output=x"], "one model to export, found 2"),
        ([str(CHECKPOINT), "--to_pytorch", "--output=x.pth"], "writes a .safetensors file"),
        ([str(CHECKPOINT), "--to_pytorch", "--output=x.safetensors"], "not a saved model"),
        (
            ["m", "--to_pytorch", "--output=x.safetensors", "--frames=8", "--new_head"],
            "--to_pytorch has no use for --frames, --new_head",
        ),
        (["--list", "a.pth"], "--list has no use for SOURCE"),
        (["--check_manifest=a.json", "--output=x"], "--check_manifest has no use for --output"),
        (["--check_manifest="], "found an empty name"),
        (["--model=internvideo2-6b-k400-f8", "--output=x"], "never released"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert convert.main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            {"head.bias": np.zeros(9, np.float32)},
            ["misshapen head.bias  expected [7], found [9]"],
        ),
        ({"head.bias": None}, ["missing   head.bias  expected [7]"]),
        ({"head.weight": None}, ["missing   head.weight  expected [7, 32]"]),
        (
            {"head.weight": np.zeros((32, 7), np.float32)},
            ["misshapen head.weight  expected [7, 32], found [32, 7]"],
        ),
    ],
)
def test_misfits_of_the_head_do_not_hide_the_others(change, lines, capsys, tmp_path):
    state = _state() | {"what_is_this": np.zeros(3, np.float32)} | change
    state = {name: array for name, array in state.items() if array is not None}
    del state["blocks.1.norm1.weight"]
    safetensors.numpy.save_file(state, tmp_path / "bad.safetensors")
    argv = [str(tmp_path / "bad.safetensors"), f"--output={tmp_path / 'model'}", *OPTIONS]
    assert convert.main(argv) == 2
    text = capsys.readouterr().err
    for line in (*lines, "missing   blocks.1.norm1.weight", "extra     what_is_this  found [3]"):
        assert line in text
    assert "--new_head" not in text
    assert not (tmp_path / "model").exists()


def test_an_exported_model_converts_without_options(model, capsys, tmp_path):
    back = tmp_path / "back.safetensors"
    assert convert.main([str(model), "--to_pytorch", f"--output={back}"]) == 0
    assert convert.main([str(back), f"--output={tmp_path / 'again'}"]) == 0
    assert load(tmp_path / "again").config == load(model).config


def test_a_file_without_tensors(capsys, tmp_path):
    safetensors.numpy.save_file({}, tmp_path / "empty.safetensors")
    argv = [str(tmp_path / "empty.safetensors"), f"--output={tmp_path / 'model'}"]
    assert convert.main(argv) == 2
    assert "found a file without any tensor" in capsys.readouterr().err


def test_weights_that_are_not_finite_need_an_option(capsys, tmp_path):
    state = _state()
    state["cls_token"][:] = np.nan
    file = tmp_path / "nan.safetensors"
    safetensors.numpy.save_file(state, file)
    argv = [str(file), f"--output={tmp_path / 'model'}", *OPTIONS]
    assert convert.main(argv) == 2
    assert "cls_token: 48 NaN of 48" in capsys.readouterr().err
    assert convert.main([*argv, "--allow_nonfinite"]) == 0
    assert "warning: not finite, cls_token: 48 NaN" in capsys.readouterr().err


def test_names_of_files_and_tensors_are_escaped(capsys, tmp_path):
    file = tmp_path / "\x1b[2J.safetensors"
    safetensors.numpy.save_file(_state(), file)
    assert convert.main([str(file), f"--output={tmp_path / 'model'}", *OPTIONS, "--sha256"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count(r"\x1b[2J.safetensors") == 2


def test_the_list_of_releases(capsys):
    assert convert.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert "internvideo2-1b-k400-f8" in text
    assert "never released" in text


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest of the demo's checkpoint: `manifest(config changes, tensor changes)`."""
    checkpoint = open_checkpoint(CHECKPOINT)
    config = checkpoint.metadata["args"]
    tensors = {name: list(tensor.shape) for name, tensor in checkpoint.items()}

    def write(name="demo", options=None, **changes):
        content = {
            "checkpoint": name,
            "config": config | (options or {}),
            "tensors": {k: s for k, s in (tensors | changes).items() if s is not None},
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("separator", [",", " "])
def test_manifests_are_checked_one_line_each(manifest, capsys, separator):
    paths = f"{manifest('one')}{separator}{manifest('two', clip_pos_embed=[1, 65, 48])}"
    assert convert.main(["--check_manifest", *paths.split(" ")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("one: total as video_classifier: 67 of 67 keys consumed, 0 ignored")
    assert "two: total as video_classifier: 67 of 68 keys consumed, 1 ignored" in second


def test_any_misfit_of_a_manifest_fails(manifest, capsys):
    bad = manifest("bad", cls_token=None, more=[3])
    assert convert.main([f"--check_manifest={manifest('good')},{bad}"]) == 1
    text = capsys.readouterr().out
    assert "good: total" in text
    assert "bad: NOT total" in text
    assert "missing   cls_token  expected [1, 1, 48]" in text
    assert "extra     more  found [3]" in text


def test_a_manifest_of_another_model_fails(manifest, tmp_path, capsys):
    other = {"config": {"hidden_size": 4}, "tensors": {"bert.embeddings.weight": [3, 4]}}
    (tmp_path / "bert.json").write_text(json.dumps(other))
    assert convert.main([f"--check_manifest={tmp_path / 'bert.json'}"]) == 1
    assert "bert: NOT total: expected" in capsys.readouterr().out
    next_generation = manifest("next", options={"cls_token_num": 4})
    assert convert.main([f"--check_manifest={next_generation}"]) == 1
    assert "unknown options" in capsys.readouterr().out
    assert convert.main([f"--check_manifest={tmp_path / 'absent.json'},{tmp_path}"]) == 1
    absent, folder = capsys.readouterr().out.splitlines()
    assert "absent.json, found: No such file or directory" in absent
    assert "found a folder" in folder
