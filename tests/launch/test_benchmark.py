import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil

import numpy as np
import pytest

from internvideo_jax.convert.files.sources import open_checkpoint
from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.launch import benchmark
from internvideo_jax.launch.benchmarks import (
    checkpoints,
    contrastive,
    decode,
    encode_video,
    extract,
    forwards,
    lists,
    rerank,
    runner,
    search,
    text_encoder,
)
from internvideo_jax.launch.benchmarks.figures import Figure, Figures
from internvideo_jax.launch.benchmarks.runner import Row, Sample
from internvideo_jax.models import stage1, video_vit
from internvideo_jax.parallel.aot import Memory
from tests.small_models import BERT, CLIP_ENCODER, ENCODER, STAGE2, clip_stage2

TEXT = dataclasses.replace(BERT, depth=2, cross_width=None, mlm_head=False)

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the extra `torch` is not installed"
)
needs_transformers = pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("torch", "transformers")),
    reason="torch and transformers are not installed",
)


def samples(*seconds, peak=0.5):
    return [Sample(s, 2 * s, peak) for s in seconds]


def run_benchmark(tmp_path, *arguments):
    """The command's exit code and the one row that it wrote."""
    target = tmp_path / "rows.json"
    code = benchmark.main([*arguments, f"--json={target}"])
    return code, json.loads(target.read_text())[0] if target.exists() else None


def test_a_row_has_medians_and_how_many_times_faster_than_the_peer():
    row = Row("x/y", samples(9.0, 1.0, 2.0), "peer", samples(3.0, 1.0, 80.0), {"threads": 2})
    found = row.to_json()
    assert (found["value"], found["cpu_seconds"], found["seconds"]) == (2.0, 4.0, [9.0, 1.0, 2.0])
    assert (found["peer_value"], found["ratio"], found["threads"]) == (3.0, 1.5, 2)
    assert "| 1.50  |" in row.table()
    alone = Row("x/y", samples(1.0))
    assert not {"peer", "peer_value", "ratio"} & alone.to_json().keys()
    assert alone.table().splitlines()[-1].startswith("| x/y  | 1 s  | 2 s      | 0.50 GB  |")


def test_sides_take_turns(capsys):
    order = []
    runs = {
        side: lambda side=side: order.append(side) or Sample(len(order), 0.0, None)
        for side in ("ours", "theirs")
    }
    row = runner.interleave("name", runs, 2, {})
    assert order == ["ours", "theirs", "ours", "theirs"]
    assert row.peer == "theirs"
    assert [sample.seconds for sample in row.peer_samples] == [2, 4]
    assert capsys.readouterr().err.endswith("name: run 2 of 2: ours 3 s, theirs 4 s\n")


@pytest.mark.parametrize("peer", ["", pytest.param("PyTorch", marks=needs_torch)])
def test_the_encoder_alone_and_beside_torch(tmp_path, monkeypatch, capsys, peer):
    monkeypatch.setattr(video_vit, "internvideo2_b14", lambda: ENCODER)
    if not peer:
        monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    code, row = run_benchmark(tmp_path, "encoder", "--repeats=2", "--threads=1")
    assert code == 0
    assert (row["name"], len(row["seconds"])) == ("encoder_forward/b14", 2)
    assert 0.05 < row["peak_rss_gb"] < 2
    assert row["machine"]["versions"]["jax"]
    printed = capsys.readouterr()
    assert "| encoder_forward/b14 |" in printed.out
    if not peer:
        assert "ratio" not in row
        assert "pip install 'internvideo-jax[torch]'" in printed.err
        return
    assert row["peer"] == peer
    assert row["ratio"] == row["peer_value"] / row["value"]
    assert row["peer_peak_rss_gb"] > 0.05
    assert row["difference_from_peer"] < 1e-5


@pytest.fixture
def without_processes(monkeypatch):
    """Sides run in this process, so that they see small models."""

    @contextlib.contextmanager
    def worker(prepare, *arguments, threads):
        run, facts = prepare(*arguments)
        yield facts, lambda: Sample(*runner.timed(run), None)

    monkeypatch.setattr(forwards, "worker", worker)


@pytest.mark.usefixtures("without_processes")
@pytest.mark.parametrize("peer", ["", pytest.param("transformers", marks=needs_transformers)])
def test_the_text_encoder_alone_and_beside_transformers(tmp_path, monkeypatch, capsys, peer):
    monkeypatch.setattr(text_encoder, "text_config", lambda size: TEXT)
    monkeypatch.setattr(text_encoder, "LENGTH", 8)
    if not peer:
        monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    code, row = run_benchmark(tmp_path, "text_encoder", "--size=base", "--repeats=2", "--threads=1")
    assert (code, row["name"], row["layers"]) == (0, "text_encoder/base", TEXT.depth)
    assert len(row["seconds"]) == 2
    if peer:
        assert row["ratio"] == row["peer_value"] / row["value"]
        assert row["difference_from_peer"] < 1e-5
    else:
        assert "ratio" not in row
        assert "pip install torch transformers" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "depth"), [("large", 19), ("base", 9)])
def test_the_text_encoder_has_text_layers_alone(size, depth):
    config = text_encoder.text_config(size)
    assert (config.depth, config.fusion_layer, config.cross_width) == (depth, depth, None)


@pytest.mark.usefixtures("without_processes")
def test_reranking_beside_encoding_for_every_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(rerank, "model_config", lambda: STAGE2["visual"])
    code, row = run_benchmark(tmp_path, "rerank", "--repeats=1")
    assert (code, row["name"], row["pairs"]) == (0, "rerank/b14", 16)
    assert row["pairs_per_second"] == pytest.approx(16 / row["value"])
    assert row["difference_from_peer"] < 1e-4
    assert 128_000 < row["pairs_of_1000x1000"] <= row["passes_of_1000x1000"] <= 2 * 128_000


@pytest.mark.usefixtures("without_processes")
@pytest.mark.parametrize(("seconds", "code"), [(40.0, 0), (40.1, 1)])
def test_embeddings_of_files_beside_the_bare_encoder(tmp_path, monkeypatch, seconds, code):
    config = clip_stage2("visual")
    monkeypatch.setattr(encode_video, "model_config", lambda: config)
    monkeypatch.setattr(encode_video, "NUM_CLIPS", 3)
    monkeypatch.setattr(encode_video, "SIDE", 48)
    # So small an encoder is nothing beside the decoding.
    monkeypatch.setattr(encode_video, "MAX_SHARE", 1e9)
    started = []

    def run_function(function, *arguments):
        started.append((function, arguments))
        return Sample(seconds, 1.0, None)

    monkeypatch.setattr(encode_video, "run_function", run_function)
    found, row = run_benchmark(tmp_path, "encode_video", "--repeats=1")
    assert (found, row["name"], row["holds"]) == (code, "encode_video/b14", code == 0)
    figures = {name: figure["value"] for name, figure in row["figures"].items()}
    assert figures["share"] == figures["warm encode_video"] / figures["bare encoder"]
    assert row["difference_from_peer"] < 1e-4
    assert [function for function, _ in started] == [encode_video.embed_first] * 2
    assert started[0] == started[1]


@pytest.mark.slow
def test_features_of_a_clip_beside_a_bare_forward(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video_vit, "internvideo2_b14", lambda: CLIP_ENCODER)
    monkeypatch.setattr(extract, "SECONDS", 1)
    target = tmp_path / "rows.json"
    assert benchmark.main(["extract", "--repeats=1", f"--json={target}"]) == 0
    rows = json.loads(target.read_text())
    assert [row["name"] for row in rows] == ["extract/b14", "encode/b14"]
    for row in rows:
        assert row["peer"] == "bare forward"
        assert row["ratio"] == row["peer_value"] / row["value"]
        assert row["peer_cpu_seconds"] > 0.5
    assert capsys.readouterr().out.count("| bare forward |") == 2


def test_different_outputs_are_not_raced():
    tokens, pooled = np.array([1.0, 2.0]), np.array([-4.0, 0.0])

    def difference(error):
        return forwards.difference([tokens, pooled], [tokens, np.array([-4.0, error])])

    assert difference(1e-5) == 2.5e-6
    for wrong in (1e-3, np.nan):
        with pytest.raises(ValueError, match="agree with the peer's within 1e-05, found"):
            difference(wrong)


def test_more_threads_than_cpus_are_refused(capsys):
    assert benchmark.main(["encoder", "--threads=4096"]) == 2
    assert "lower --threads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bounds", "holds"),
    [((None, None), True), ((2.0, None), True), ((1.9, None), False), ((9, 2.1), False)],
)
def test_figures_hold_where_all_keep_to_their_bounds(bounds, holds):
    figures = Figures(
        "x/y", (Figure("first", 5.0, "s"), Figure("second", 2.0, "", *bounds)), {"n": 1}
    )
    assert figures.holds == figures.to_json()["holds"] == holds
    assert figures.to_json()["figures"]["first"] == {"value": 5.0, "unit": "s"}
    assert figures.to_json()["n"] == 1
    assert "| first | second" in figures.table()
    assert not Figure("unknown", np.nan, at_most=1).holds


@pytest.mark.slow
def test_memory_of_contrast_beside_all_pairs(tmp_path):
    code, row = run_benchmark(tmp_path, "contrastive", "--batch_size=4096", "--width=8")
    assert (code, row["holds"], row["devices"]) == (0, True, 8)
    # All pairs, 64 MiB, and at least as much again for the gradient.
    assert row["peer_memory"]["temporaries"] > 2**27
    assert row["figures"]["share"]["value"] < 0.25
    assert 0 < row["figures"]["difference of float64 gradients"]["value"] < 1e-12


@pytest.mark.parametrize(
    ("needed", "difference", "code"), [(25, 1e-6, 0), (26, 1e-6, 1), (25, 1e-4, 1), (25, np.nan, 1)]
)
def test_the_exit_code_says_whether_contrast_keeps_to_its_bounds(
    tmp_path, monkeypatch, needed, difference, code
):
    memories = [
        Memory(arguments=9, outputs=5, temporaries=size - 5, program=9) for size in (needed, 100)
    ]
    measured = memories, {"float32": difference, "float64": 1e-15}
    monkeypatch.setattr(contrastive, "run_apart", lambda *arguments, threads: measured)
    found, row = run_benchmark(tmp_path, "contrastive")
    assert (found, row["holds"]) == (code, code == 0)
    assert row["figures"]["share"]["value"] == needed / 100


def test_contrast_needs_a_batch_that_the_devices_divide(capsys):
    assert benchmark.main(["contrastive", "--batch_size=12"]) == 2
    assert "8 devices divide, found 12" in capsys.readouterr().err


def test_the_start_on_lists_of_three_media(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNVIDEO_HOME", "set by the benchmark")
    monkeypatch.setattr(
        lists, "run_apart", lambda function, *arguments, threads: function(*arguments)
    )
    monkeypatch.setattr(lists, "_BLOCK", 7)
    work = tmp_path / "work"
    _, row = run_benchmark(tmp_path, "lists", "--lines=100", f"--workdir={work}")
    assert row["lines"] == {"video": 70, "audio_video": 20, "image": 10}
    values = {name: figure["value"] for name, figure in row["figures"].items()}
    assert values["lines read"] == 100 / row["cpu_seconds"]
    assert 0 < values["later start"] < 10
    assert 0 < values["random record"] < 1e4
    assert values["memory of its own"] > 10
    assert list(work.iterdir()) == []


def test_lists_of_the_benchmark_have_captions_of_all_kinds(tmp_path):
    counts = lists.write_lists(tmp_path, 30)
    video, sound, image = (read_annotations(tmp_path / f"{media}.jsonl") for media in counts)
    assert (len(video), len(sound), len(image)) == (21, 6, 3)
    assert (video[0].start, len(video[0].captions)) == (0.25, 1)
    assert len(sound[5].captions_named("avs_captions")) == 2
    assert len(image[1].captions) == 4


def die():
    os._exit(3)


def test_a_process_that_dies_is_reported():
    with pytest.raises(ChildProcessError, match="ended before it answered"):
        with runner.worker(die, threads=1):
            pass


def test_converting_beside_copying(tmp_path, monkeypatch):
    small = dataclasses.replace(video_vit.internvideo2_s14(), depth=1)
    monkeypatch.setattr(stage1, "stage1_student", lambda encoder: small)
    work, target = tmp_path / "work", tmp_path / "rows.json"
    arguments = ["--repeats=1", f"--workdir={work}", f"--json={target}"]
    assert benchmark.main(["convert", *arguments]) == 0
    rows = json.loads(target.read_text())
    assert [row["name"] for row in rows] == ["convert/1b.safetensors", "convert/1b.pth"]
    parameters = sum(np.prod(s) for s in checkpoints.checkpoint_shapes(small).values())
    for row in rows:
        assert row["peer"] == "copying the file"
        assert row["ratio"] == row["peer_value"] / row["value"]
        assert 0.05 < row["peak_rss_gb"] < 2
        assert row["checkpoint_gb"] == pytest.approx(4e-9 * parameters)
    assert list(work.iterdir()) == []


def test_both_formats_hold_the_same_numbers_where_they_are_read_fast(tmp_path):
    shapes = {"a.weight": (3, 5), "long": (1, 2, 1000), "bias": (7,)}
    opened = []
    for suffix, write in checkpoints.WRITERS.items():
        file = tmp_path / f"model.{suffix}"
        write(file, shapes)
        opened.append(open_checkpoint(file))
    for name, shape in shapes.items():
        first, second = (checkpoint[name] for checkpoint in opened)
        assert first.shape == second.shape == shape
        np.testing.assert_array_equal(first.read(), second.read())
        assert second.offset % 64 == 0
    assert [list(checkpoint) for checkpoint in opened] == [list(shapes)] * 2


def test_too_little_room_is_found_out_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 10**9))
    assert benchmark.main(["convert", f"--workdir={tmp_path}"]) == 2
    assert "expected 9.0 GB of free disk" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_conversion_shows_what_it_printed(tmp_path):
    with pytest.raises(ChildProcessError, match=r"(?s)failed:.*nothing\.pth"):
        runner.run_command("convert", str(tmp_path / "nothing.pth"), f"--output={tmp_path}/out")


FAKE_DECORD = """
from internvideo_jax.data.decode.video import VideoReader as Reader

class Frames:
    def __init__(self, frames):
        self.frames = frames
    def asnumpy(self):
        return self.frames

class VideoReader:
    def __init__(self, path, num_threads):
        assert num_threads == 1
        self.reader = Reader(path)
    def __len__(self):
        return self.reader.index.num_frames
    def get_batch(self, indices):
        return Frames(self.reader.read(indices) OTHER)
"""


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for motion in ("left", "up"):
        scene = synthetic.Scene("ring", "red", motion)
        synthetic.write_video(folder / f"{motion}.mp4", synthetic.render(scene, 12, 64))
    return folder


@pytest.mark.parametrize(("change", "equal"), [("", 2), ("+ 1", 0)])
def test_decoding_beside_decord(tmp_path, clips, monkeypatch, capsys, change, equal):
    peer = tmp_path / "peer"
    peer.mkdir()
    (peer / "decord.py").write_text(FAKE_DECORD.replace("OTHER", change))
    monkeypatch.syspath_prepend(peer)
    monkeypatch.setenv("PYTHONPATH", str(peer))
    code, row = run_benchmark(tmp_path, "decode", f"--clips={clips}", "--repeats=2")
    assert code == 0
    assert (row["name"], row["peer"], row["clips"]) == ("decode/clips", "decord", 2)
    assert row["ratio"] == row["peer_value"] / row["value"]
    assert row["clips_per_second"] == 2 / row["value"]
    assert row["clips_with_equal_views"] == equal
    assert f"equal views of {equal} clips" in capsys.readouterr().err


def test_decoding_without_decord_is_our_half_and_advice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(decode, "NUM_SYNTHETIC", 2)
    code, row = run_benchmark(tmp_path, "decode", "--repeats=1")
    assert code == 0
    assert row["clips"] == 2
    assert not {"ratio", "peer_clips_per_second"} & row.keys()
    assert "pip install decord" in capsys.readouterr().err


def test_decoding_needs_clips(tmp_path, capsys):
    assert benchmark.main(["decode", f"--clips={tmp_path / 'none'}"]) == 2
    assert "expected a folder of videos, found none" in capsys.readouterr().err
    assert benchmark.main(["decode", f"--clips={tmp_path}"]) == 2
    assert "expected a folder with videos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"), [("", "is a folder"), ("f/rows.json", "not a folder")]
)
def test_a_place_that_cannot_hold_the_json_is_refused_first(tmp_path, capsys, name, message):
    (tmp_path / "f").touch()
    assert benchmark.main(["convert", f"--json={tmp_path / name}"]) == 2
    assert message in capsys.readouterr().err


def test_search_in_clusters_beside_all_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(
        search, "run_apart", lambda function, *arguments, threads: function(*arguments)
    )
    monkeypatch.setattr(search, "_QUERIES", 5)
    work = tmp_path / "work"
    _, row = run_benchmark(tmp_path, "search", "--vectors=3000", "--width=16", f"--workdir={work}")
    assert row["name"] == "search/3000x16"
    values = {name: figure["value"] for name, figure in row["figures"].items()}
    assert 0 < values["recall@10"] <= 1
    assert values["file"] > 3000 * 16 * 4 / 1e9
    assert row["figures"]["exact query"]["at_most"] == 150
    assert list(work.iterdir()) == []
