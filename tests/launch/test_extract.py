"""The command `extract`."""

import json
import os
import resource

import jax
import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.evaluation import runner
from internvideo_jax.launch import extract
from internvideo_jax.launch.common import feature_files
from tests.small_models import CLIP_ENCODER, clip_model, save_stage2


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    model = clip_model(CLIP_ENCODER)
    saved_model.save(path, "video_vit", model.config, model.preprocessing, model.variables)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, color, length in (
        ("a.mp4", "red", 9),
        ("x/same.mp4", "green", 12),
        ("y/same.mp4", "blue", 3),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        scene = synthetic.Scene("square", color, "left")
        synthetic.write_video(folder / name, synthetic.render(scene, length, size=48))
    (folder / "notes.txt").write_text("not a video")
    (folder / ".hidden.mp4").write_text("not a video either")
    return folder


@pytest.fixture
def run(model_dir, tmp_path):
    output = tmp_path / "features"

    def call(*argv):
        return extract.main([*map(str, argv), f"--model={model_dir}", f"--output={output}"])

    call.output = output
    return call


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_of_videos(run, videos, capsys):
    assert run(videos) == 0
    names = ["a.mp4.npz", "summary.json", "x/same.mp4.npz", "y/same.mp4.npz"]
    assert written(run.output) == names
    with np.load(run.output / "y/same.mp4.npz") as file:
        fields = dict(file)
    assert fields["features"].shape == (16,)
    assert fields["features"].dtype == np.float32
    assert fields["grid"].tolist() == [2, 4, 4]
    assert fields["frame_indices"].tolist() == [0, 0, 1, 2]
    np.testing.assert_allclose(fields["timestamps"], [0, 0, 0.04, 0.08], atol=1e-6)
    assert (int(fields["num_frames"]), int(fields["repeated_frames"])) == (3, 1)
    assert str(fields["source"]) == str(videos / "y/same.mp4")
    assert [str(fields[name]) for name in ("kind", "dtype")] == ["pooled", "float32"]
    assert str(fields["model"]).endswith("/tiny")
    captured = capsys.readouterr()
    assert "same.mp4: 3 frames for 4: 1 repeated" in captured.err
    assert captured.out.startswith("3 of 3 videos in ")
    summary = json.loads((run.output / "summary.json").read_text())
    assert (summary["written"], summary["failed"]) == (3, [])
    assert summary["repeated_frames"] == [str(videos / "y/same.mp4")]


def test_tokens_of_more_frames(run, videos, capsys):
    assert run(videos / "a.mp4", "--kind=tokens", "--frames=6") == 0
    with np.load(run.output / "a.mp4.npz") as file:
        assert file["features"].shape == (1 + 3 * 4 * 4, 32)
        assert file["grid"].tolist() == [3, 4, 4]
    assert "made for 4 frames: its position table is resized to 6" in capsys.readouterr().err


def test_failures_are_listed_and_the_rest_written(run, videos, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.touch()
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    assert run(videos / "a.mp4", bad, text) == 1
    assert [name for name in written(run.output) if name.endswith("a.mp4.npz")]
    failed = json.loads((run.output / "summary.json").read_text())["failed"]
    assert {item["source"] for item in failed} == {str(bad), str(text)}
    error = capsys.readouterr().err
    assert "2 failed:" in error
    assert f"{bad}   expected a complete video file, found an empty file" in error


def test_a_path_that_does_not_exist_is_told_before_anything_is_made(run, videos, capsys):
    assert run(videos / "a.mp4", videos / "b.mp4", "no/c.mp4") == 2
    assert f"found nothing at {videos / 'b.mp4'}, no/c.mp4" in capsys.readouterr().err
    assert not run.output.exists()


def test_damage_that_the_decoder_reports_is_told(run, tmp_path, capsys):
    # Noise, so that frames are large enough to have a middle that can be overwritten.
    frames = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
    path = tmp_path / "damaged.mp4"
    synthetic.write_video(path, frames)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 1000
    data[start : start + 40] = bytes(range(200, 240))
    path.write_bytes(data)
    assert run(path) == 0
    assert f"{path}: damaged: the decoder met errors" in capsys.readouterr().err
    summary = json.loads((run.output / "summary.json").read_text())
    assert summary["damaged_frames"] == [str(path)]
    assert np.load(run.output / "damaged.mp4.npz")["damaged_frames"] > 0


def test_an_existing_output_is_left_alone(run, videos, capsys):
    run.output.mkdir()
    (run.output / "precious").write_text("data")
    assert run(videos) == 2
    assert "not empty" in (error := capsys.readouterr().err)
    assert "--resume" in error
    assert written(run.output) == ["precious"]


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_file_is_no_output_folder(run, videos, model_dir, capsys, resume):
    run.output.touch()
    assert run(videos, *resume) == 2
    error = capsys.readouterr().err
    assert "cannot make this folder (File exists)" in error
    assert "--resume" not in error


def test_resume_keeps_what_is_finished(run, videos, capsys):
    assert run(videos) == 0
    kept, redone = run.output / "a.mp4.npz", run.output / "x/same.mp4.npz"
    expected = np.load(redone)["features"]
    redone.write_bytes(redone.read_bytes()[:-300])
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    assert run(videos, "--resume") == 0
    captured = capsys.readouterr()
    assert "2 of 3 videos are finished" in captured.err
    assert captured.out.startswith("1 of 1 videos")
    assert kept.stat().st_mtime_ns == before
    np.testing.assert_allclose(np.load(redone)["features"], expected, atol=1e-5)


def test_resume_refuses_other_settings(run, videos, capsys):
    assert run(videos / "a.mp4") == 0
    for settings in ("--kind=tokens", "--frames=8"):
        assert run(videos, "--resume", settings) == 2
        error = capsys.readouterr().err
        assert "/tiny (" in error
        assert "resume with the settings of the first run" in error


def test_resume_with_other_videos_adds_to_the_folder(run, videos, tmp_path):
    (tmp_path / "bad.mp4").touch()
    (tmp_path / "new.mp4").symlink_to(videos / "x/same.mp4")
    assert run(videos / "y/same.mp4", tmp_path / "bad.mp4", "--short=repeat") == 1
    before = json.loads((run.output / "summary.json").read_text())
    assert run(tmp_path / "new.mp4", "--resume") == 0
    after = json.loads((run.output / "summary.json").read_text())
    assert (after["written"], after["finished_before"]) == (1, 1)
    for name in ("failed", "repeated_frames"):
        assert len(after[name]) == 1
        assert after[name] == before[name]


def test_resume_does_not_replace_the_features_of_another_video(run, videos, capsys):
    assert run(videos / "x/same.mp4") == 0
    before = (run.output / "same.mp4.npz").read_bytes()
    assert run(videos / "y/same.mp4", "--resume") == 2
    assert f"found those of {videos / 'x/same.mp4'}" in capsys.readouterr().err
    assert (run.output / "same.mp4.npz").read_bytes() == before


def test_what_does_not_fit_into_memory_says_what_to_lower(run, videos, monkeypatch, capsys):
    def exhausted(*_args, **_options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(runner, "_forward", exhausted)
    assert run(videos) == 2
    error = capsys.readouterr().err
    assert "8 clips of 4 frames do not fit into memory (RESOURCE_EXHAUSTED" in error
    assert "lower --batch_size or --frames" in error
    assert not run.output.exists()


def test_a_folder_without_videos(run, tmp_path, capsys):
    assert run(tmp_path) == 2
    assert "found none" in capsys.readouterr().err
    assert not run.output.exists()


def test_output_names_are_unique():
    names = feature_files.output_names(["/v/a/c.mp4", "/v/b/c.mp4", "/v/b/c.webm"])
    assert list(map(str, names.values())) == ["a/c.mp4.npz", "b/c.mp4.npz", "b/c.webm.npz"]
    assert list(map(str, feature_files.output_names(["/v/a/c.mp4"]).values())) == ["c.mp4.npz"]


def test_very_long_names_are_cut(run, videos, tmp_path):
    # 250 bytes, in characters of two.
    name = f"{'é' * 123}.mp4"
    (tmp_path / name).symlink_to(videos / "a.mp4")
    (tmp_path / f"{'é' * 122}e.mp4").symlink_to(videos / "a.mp4")
    (tmp_path / "other.mp4").symlink_to(videos / "a.mp4")
    assert run(tmp_path) == 0
    assert len(written(run.output)) == 4
    names = json.loads((run.output / "summary.json").read_text())["shortened_names"]
    assert len(names) == 2
    with np.load(run.output / names[str(tmp_path / name)]) as file:
        assert str(file["source"]) == str(tmp_path / name)
    assert run(videos / "x/same.mp4", "--resume") == 0
    assert json.loads((run.output / "summary.json").read_text())["shortened_names"] == names


def test_a_name_that_cannot_be_written_costs_its_own_clip(run, videos, tmp_path):
    (tmp_path / "v/a.mp4.npz").mkdir(parents=True)
    for name in ("a.mp4", "a.mp4.npz/b.mp4", "c.mp4"):
        (tmp_path / "v" / name).symlink_to(videos / "a.mp4")
    assert run(tmp_path / "v") == 1
    summary = json.loads((run.output / "summary.json").read_text())
    assert (summary["written"], len(summary["failed"])) == (2, 1)
    assert "give the video another name" in summary["failed"][0]["reason"]


def test_a_summary_is_left_where_all_videos_fail(run, tmp_path):
    (tmp_path / "bad.mp4").touch()
    assert run(tmp_path / "bad.mp4") == 1
    summary = json.loads((run.output / "summary.json").read_text())
    assert (summary["written"], len(summary["failed"])) == (0, 1)
    assert run(tmp_path / "bad.mp4", "--resume") == 1
    summary = json.loads((run.output / "summary.json").read_text())
    assert (summary["written"], len(summary["failed"])) == (0, 1)


@pytest.mark.parametrize(
    "text", ["[]", '{"failed": 3}', '{"failed": [{"reason": "x"}]}', "[" * 10**5, '{"failed": [4]}']
)
def test_a_damaged_summary_is_written_anew(run, videos, text):
    assert run(videos / "a.mp4") == 0
    (run.output / "summary.json").write_text(text)
    assert run(videos / "a.mp4", "--resume") == 0
    assert json.loads((run.output / "summary.json").read_text())["finished_before"] == 1


def test_damaged_features_are_made_anew(run, videos):
    video = videos / "a.mp4"
    assert run(video) == 0
    target = run.output / "a.mp4.npz"
    content = target.read_bytes()
    with np.load(target) as file:
        fields = dict(file)
    names = {name: str(fields[name]) for name in ("model", "model_digest", "kind", "dtype")}
    settings = feature_files.Run(**names, frames=4)
    assert settings.is_finished(str(video), target)

    def is_finished(write):
        target.unlink()
        write()
        return settings.is_finished(str(video), target)

    def flipped(position):
        return content[:position] + b"\xff" * 9 + content[position + 9 :]

    bomb = fields | {"features": np.zeros(10**7, np.uint8)}
    pickled = fields | {"model": np.array([{}], object)}
    assert not is_finished(lambda: np.savez_compressed(target, **bomb))
    assert not is_finished(lambda: np.savez(target, **pickled))
    assert not is_finished(lambda: target.write_bytes(np.zeros(3).tobytes()))
    assert not is_finished(lambda: os.mkfifo(target))
    for position in range(0, len(content), 500):
        is_finished(lambda position=position: target.write_bytes(flipped(position)))
    assert run(video, "--resume") == 0
    with np.load(target) as file:
        np.testing.assert_array_equal(file["features"], fields["features"])


def test_a_full_disk_leaves_nothing_half_written(run, videos, capsys):
    # A limit on file sizes fails the same system calls as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        code = run(videos / "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert "cannot write it (File too large)" in capsys.readouterr().err
    assert not run.output.exists()


def test_an_interruption_leaves_nothing_half_written(run, videos, monkeypatch, capsys):
    def interrupted(file, **fields):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    assert run(videos / "a.mp4") == 130
    assert not run.output.exists()
    assert "interrupted" in capsys.readouterr().err


def test_windows_of_videos(run, videos, tmp_path, capsys):
    (tmp_path / "bad.mp4").touch()
    assert run(videos, tmp_path / "bad.mp4", "--window=0.2", "--stride=0.1") == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("3 of 4 videos in ")
    path = next(run.output.rglob("a.mp4.npz"))
    with np.load(path) as file:
        fields = dict(file)
    assert fields["features"].shape == (3, 16)
    # Nine frames, of which the last window ends with the last.
    np.testing.assert_allclose(fields["start"], [0, 0.1, 0.16], atol=1e-6)
    np.testing.assert_allclose(fields["end"], [0.2, 0.3, 0.36], atol=1e-6)
    assert fields["frame_indices"].shape == fields["timestamps"].shape == (3, 4)
    assert (float(fields["window"]), float(fields["stride"])) == (0.2, 0.1)
    assert run(videos, tmp_path / "bad.mp4", "--window=0.2", "--stride=0.1", "--resume") == 1
    assert "3 of 4 videos are finished" in capsys.readouterr().err
    assert run(videos, "--resume") == 2
    assert "window 0.2, stride 0.1" in capsys.readouterr().err


def test_a_layer_and_a_crop(run, videos):
    argv = (videos / "a.mp4", "--kind=tokens", "--layer=0", "--crop=three")
    assert run(*argv) == 0
    with np.load(run.output / "a.mp4.npz") as file:
        assert (int(file["layer"]), str(file["crop"])) == (0, "three")
        assert file["features"].shape == (1 + 2 * 4 * 4, 32)
    assert run(*argv, "--resume") == 0
    assert run(*argv[:-1], "--resume") == 2


def test_embeddings_of_a_model_that_compares(videos, tmp_path):
    model, output = save_stage2(tmp_path), tmp_path / "features"
    argv = [str(videos / "a.mp4"), f"--model={model}", f"--output={output}"]
    assert extract.main(argv) == 0
    with np.load(output / "a.mp4.npz") as file:
        assert str(file["kind"]) == "embedding"
        assert file["features"].shape == (6,)
        assert "grid" not in file
    assert extract.main([*argv[:-1], f"--output={tmp_path / 'x'}", "--kind=tokens"]) == 0
    with np.load(tmp_path / "x" / "a.mp4.npz") as file:
        assert file["features"].shape[0] == 1 + np.prod(file["grid"])


def test_a_list_of_videos(run, videos, tmp_path, capsys):
    paths = tmp_path / "list.txt"
    os.symlink(videos / "x", tmp_path / "x")
    paths.write_text(f"{videos / 'a.mp4'}\n\nx/same.mp4\n")
    assert run(f"--list={paths}") == 0
    assert len(list(run.output.rglob("*.npz"))) == 2
    paths.write_text(f"{videos / 'a.mp4'}\nx/none.mp4\n")
    assert run(f"--list={paths}", "--resume") == 2
    error = capsys.readouterr().err
    assert f"{paths}, line 2: expected the path of a video or folder, found nothing at" in error
    paths.write_text("\n")
    assert run(f"--list={paths}") == 2
    assert run() == 2
    assert "--list=FILE, found none" in capsys.readouterr().err
