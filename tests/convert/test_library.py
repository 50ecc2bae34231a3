"""Models by name."""

import errno
import json
import os
import shutil
import threading

import jax
import pytest
from safetensors.numpy import save

from internvideo_jax import saved_model
from internvideo_jax.convert import library
from internvideo_jax.convert.engine import conversion, registry
from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.launch import convert


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Where models are kept, empty."""
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def checkpoint(tiny_state, options):
    """A file of a tiny classifier, which says what its tensors do not show."""
    _, state = tiny_state("linear")
    return save(state, metadata={"config": json.dumps(options)})


@pytest.fixture
def release(monkeypatch):
    """A release that the hub on this machine has."""
    made = registry.Released(
        "tiny-k7", "video_classifier", {"num_classes": 7}, "owner/name", "tiny.safetensors"
    )
    gated = registry.Released("tiny-gated", "video_classifier", {}, status="gated", note="ask")
    monkeypatch.setattr(registry, "releases", lambda: (made, gated))
    return made


def test_a_release_is_converted_once_and_used_offline_ever_after(
    hub, models, checkpoint, release, capsys
):
    hub.files = {release.file: checkpoint, "other.safetensors": checkpoint}
    found = library.model_directory("tiny-k7")
    assert found == str(models / "tiny-k7")
    model = saved_model.load(found)
    assert model.config.num_classes == 7
    assert model.metadata["source"]["release"]["name"] == "tiny-k7"
    assert hub.requested == [release.file]
    sizes = capsys.readouterr().err.splitlines()
    assert len(sizes) == 2
    assert "downloads 0.00 GB from hf://owner/name/tiny.safetensors" in sizes[0]
    assert all(str(models / "tiny-k7") in line and "memory" in line for line in sizes)
    numbers = sum(x.size for x in jax.tree.leaves(model.variables)) / 1e9
    assert f"{4 * numbers:.2f} GB of memory in float32" in sizes[1]
    hub.stop()
    assert library.model_directory("tiny-k7") == found
    assert capsys.readouterr().err == ""


def test_capitals_of_names_do_not_count(hub, models, checkpoint, release):
    hub.files = {release.file: checkpoint}
    assert library.model_directory("Tiny-K7") == str(models / "tiny-k7")
    assert registry.find("TINY-k7") is release


def test_no_two_releases_differ_by_capitals_alone():
    names = [release.name.lower() for release in registry.releases()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("is_cached", [True, False])
def test_without_a_network_the_hubs_cache_serves_or_one_line_says_what_to_do(
    hub, models, checkpoint, release, is_cached, caplog
):
    hub.files = {release.file: checkpoint}
    if is_cached:
        library.model_directory("tiny-k7")
        shutil.rmtree(models / "tiny-k7")
    hub.stop()
    if is_cached:
        assert saved_model.load(library.model_directory("tiny-k7")).config.num_classes == 7
        assert hub.requested == [release.file]
    else:
        with pytest.raises(CheckpointError, match=r"go online \(is HF_HUB_OFFLINE .* elsewhere"):
            library.model_directory("tiny-k7")
    # The client would try five times more, and wait in between.
    assert "Retrying" not in caplog.text


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("owner/name", "owner--name"),
        ("owner/name:deep/tiny.safetensors", "owner--name--deep--tiny.safetensors"),
        ("owner/name@main", "owner--name@main"),
        ("hf://owner/name/deep/tiny.safetensors", "owner--name--deep--tiny.safetensors"),
    ],
)
def test_repositories_and_their_files(hub, models, checkpoint, name, folder):
    hub.files = {"README.md": b"#", "deep/tiny.safetensors": checkpoint}
    assert library.model_directory(name) == str(models / folder)
    assert (models / folder / saved_model.DESCRIPTION).is_file()


def test_the_size_is_said_before_the_download(hub, models, checkpoint):
    hub.files = {"a.safetensors": checkpoint}
    told = []

    def say(text):
        told.append((text, list(hub.requested)))

    library.model_directory("owner/name", say)
    assert told[0][1] == []
    assert f"downloads {len(checkpoint) / 1e9:.2f} GB" in told[0][0]


def test_the_command_that_converts_says_the_size_too(hub, models, checkpoint, tmp_path, capsys):
    hub.files = {"a.safetensors": checkpoint}
    assert convert.main(["owner/name", f"--output={tmp_path / 'made'}"]) == 0
    assert "made: downloads 0.00 GB from hf://owner/name, once" in capsys.readouterr().err
    # It is in the hub's cache then.
    assert convert.main(["owner/name", f"--output={tmp_path / 'again'}"]) == 0
    assert "downloads" not in capsys.readouterr().err


def test_who_asks_at_the_same_time_waits(hub, models, checkpoint, release, monkeypatch):
    hub.files = {release.file: checkpoint}
    written, waiting = [], threading.Event()
    write = conversion.write

    def slow(prepared, target, *args):
        # The other one must have begun to wait.
        assert waiting.wait(60)
        written.append(target)
        return write(prepared, target, *args)

    def say(text):
        if "waiting for another process" in text:
            waiting.set()

    monkeypatch.setattr(conversion, "write", slow)
    found = []

    def ask():
        found.append(library.model_directory("tiny-k7", say))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [str(models / "tiny-k7")] * 2
    assert written == [models / "tiny-k7"]


def test_a_conversion_that_fails_leaves_nothing(hub, models, checkpoint, release, monkeypatch):
    hub.files = {release.file: checkpoint}

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", str(models))

    monkeypatch.setattr(conversion, "write_arrays", full)
    with pytest.raises(OSError, match=str(models)) as error:
        library.model_directory("tiny-k7")
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in models.iterdir()] == [".tiny-k7.lock"]


def test_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert library.model_directory("owner/name") == "owner/name"
    assert library.model_directory(tmp_path) == str(tmp_path)
    assert library.model_directory("gs://bucket/model") == "gs://bucket/model"


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("internvideo2-b14-k40", "internvideo2-b14-k400"),
        ("InternVideo2-Clip-1B", "InternVideo2-CLIP-1B-224p-f8"),
        ("runs/modle", "runs/model"),
        ("./runs/modle", "runs/model"),
    ],
)
def test_the_nearest_known_name_is_suggested(tmp_path, monkeypatch, name, suggested):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"did you mean '{suggested}'"):
        library.model_directory(name)


def test_a_release_that_cannot_be_fetched_says_how_to_bring_a_file(models, release):
    with pytest.raises(ValueError, match=r"gated: ask.*convert FILE --model=tiny-gated") as error:
        library.model_directory("tiny-gated")
    assert f"--output={models / 'tiny-gated'}" in str(error.value)


def test_an_absent_repository_is_an_error_of_its_own(hub, models):
    with pytest.raises(CheckpointError, match="is private.*no folder 'owner/nothing'"):
        library.model_directory("owner/nothing")
    assert not any(path.is_dir() for path in models.iterdir())


def test_the_demo_is_its_newest_whole_stage_2(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What `internvideo-jax demo --output=demo` leaves is no model itself.
    (tmp_path / "demo").mkdir()
    with pytest.raises(ValueError, match=r"found none: make it by `make demo`.*--fast"):
        library.model_directory("demo")
    runs = models.parent / "demo" / "training"
    for number, name in enumerate(("full-1", "full-2", "fast-3")):
        model = runs / name / "stage_2" / "model"
        model.mkdir(parents=True)
        # That one is being trained.
        if name != "full-2":
            (model / saved_model.DESCRIPTION).touch()
            os.utime(model / saved_model.DESCRIPTION, (number, number))
    assert library.model_directory("demo") == str(runs / "full-1" / "stage_2" / "model")
    (runs / "full-2/stage_2/model" / saved_model.DESCRIPTION).touch()
    assert library.model_directory("demo") == str(runs / "full-2" / "stage_2" / "model")
    for name in ("full-1", "full-2"):
        shutil.rmtree(runs / name)
    assert library.model_directory("demo") == str(runs / "fast-3" / "stage_2" / "model")
