"""The command around `data.sources.shards`."""

import json
import re
import shutil

import pytest

from internvideo_jax.data.sources.shards import ShardSource, read_index
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.launch import shard


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    lines = []
    for i, motion in enumerate(("left", "up", "growing")):
        scene = synthetic.Scene("circle", "red", motion)
        synthetic.write_video(folder / f"{i}.mp4", synthetic.render(scene, 8, 32))
        lines.append(json.dumps({"video": f"{i}.mp4", "label": i}))
    (folder / "clips.jsonl").write_text("\n".join(lines))
    return folder


def test_clips_are_packed_and_checked(tmp_path, clips, capsys):
    out = tmp_path / "shards"
    arguments = [str(clips / "clips.jsonl"), f"--output={out}", "--num_shards=2", "--num_classes=3"]
    assert shard.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(
        rf"3 clips, 0\.3 MB, 2 shards in \d+\.\d s -> {re.escape(str(out))}\n", printed
    )
    reader = ShardSource(out)
    assert [reader[i].record.label for i in range(3)] == [0, 1, 2]
    assert shard.main([f"--check={out}"]) == 0
    assert "3 clips, 0.3 MB, 2 shards: as written" in capsys.readouterr().out
    (out / "clips-00001-of-00002.array_record").unlink()
    assert shard.main([f"--check={out}"]) == 2
    assert "clips-00001-of-00002.array_record: No such file" in capsys.readouterr().err


def test_class_folders_are_packed_as_lists_are(tmp_path, clips, capsys):
    for number, name in enumerate(("left", "up")):
        (tmp_path / "clips" / name).mkdir(parents=True)
        shutil.copy(clips / f"{number}.mp4", tmp_path / "clips" / name)
    out = tmp_path / "shards"
    assert shard.main([str(tmp_path / "clips"), f"--output={out}"]) == 0
    records = [ShardSource(out)[i].record for i in range(2)]
    assert [(record.id, record.label) for record in records] == [
        ("left/0.mp4", "left"),
        ("up/1.mp4", "up"),
    ]
    assert shard.main([str(tmp_path / "clips"), f"--output={out}2", "--num_classes=1"]) == 2
    assert "folders for at most 1 classes, found 2" in capsys.readouterr().err


@pytest.mark.parametrize(("megabytes", "expected"), [(1, 3), (2, 2), (1000, 1)])
def test_shards_have_about_the_wanted_size(tmp_path, clips, monkeypatch, megabytes, expected):
    monkeypatch.setattr(shard, "_size", lambda record: 10**6)
    annotations, out = str(clips / "clips.jsonl"), tmp_path / "out"
    assert shard.main([annotations, f"--output={out}", f"--shard_mb={megabytes}"]) == 0
    assert len(read_index(out).shards) == expected


def test_broken_clips_are_refused_or_left_out(tmp_path, clips, capsys):
    annotations = tmp_path / "clips.csv"
    annotations.write_text("0.mp4,0\nmissing.mp4,1\n2.mp4,2\n")
    arguments = [str(annotations), f"--root={clips}", f"--output={tmp_path / 'out'}"]
    assert shard.main(arguments) == 2
    error = capsys.readouterr().err
    assert "1 of the clips cannot be read:" in error
    assert "missing.mp4: No such file" in error
    assert not (tmp_path / "out").exists()
    assert shard.main([*arguments, "--skip_broken"]) == 0
    printed = capsys.readouterr()
    assert "missing.mp4: No such file" in printed.err
    assert printed.out.startswith("2 clips")


def test_more_shards_than_clips_are_not_made(tmp_path, clips, capsys):
    out = tmp_path / "out"
    assert shard.main([str(clips / "clips.jsonl"), f"--output={out}", "--num_shards=50"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "3 shards: not more than there are clips\n"
    assert "3 shards in" in printed.out


def test_a_folder_that_cannot_be_made_is_named(tmp_path, clips, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert shard.main([str(clips / "clips.jsonl"), f"--output={out}"]) == 2
    assert f"{out.parent}: File exists; name another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected ANNOTATIONS and --output=DIR, or --check=DIR"),
        (["a.csv"], "expected ANNOTATIONS and --output=DIR"),
        (["a.csv", "--check=b"], "takes neither annotations nor --output"),
        (["a.csv", "--output=b", "--num_shards=2", "--shard_mb=1"], "not allowed with argument"),
        (
            ["a.csv", "--output=b", "--num_shards=0"],
            "expected a whole number of at least 1, found '0'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        shard.main(arguments)
    assert message in capsys.readouterr().err
