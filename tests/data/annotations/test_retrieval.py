"""Lists of videos with captions, in the forms of the benchmarks."""

import json
import os
import pickle

import pytest

from internvideo_jax.data.annotations.records import AnnotationError
from internvideo_jax.data.annotations.retrieval import read_retrieval

CSV = """\
key,vid_key,video_id,sentence
ret0,msr9770,video9770,a person is connecting something to system
ret1,msr9771,video9771,"a little girl, who does gymnastics"
"""
LSMDC = """\
1012_Unbreakable_00.05.16.065\t00:05:16\t00:05:21\t00:05:16\t00:05:21\tSOMEONE is walking.
1012_Unbreakable_00.10.19.170\t00:10:19\t00:10:22\t00:10:19\t00:10:22\tHe looks up.
"""
FORMS = {
    "internvideo2.json": (
        [{"video": "a.mp4", "caption": "one"}, {"video": "b.mp4", "caption": ["two", "three"]}],
        {"a.mp4": ("one",), "b.mp4": ("two", "three")},
    ),
    "several_videos.json": (
        [{"video": ["a.mp4", "b.mp4"], "caption": "one"}],
        {"a.mp4": ("one",), "b.mp4": ("one",)},
    ),
    "sounds.json": ([{"audio": "a.wav", "caption": "one"}], {"a.wav": ("one",)}),
    "msrvtt.csv": (
        CSV,
        {
            "video9770": ("a person is connecting something to system",),
            "video9771": ("a little girl, who does gymnastics",),
        },
    ),
    "quoted.csv": (
        '"video_id", "sentence"\n"video1","one, two"\n',
        {"video1": ("one, two",)},
    ),
    "MSRVTT_data.json": (
        {
            "videos": [{"video_id": "video1", "split": "test"}],
            "sentences": [
                {"video_id": "video1", "caption": "one", "sen_id": 0},
                {"video_id": "video1", "caption": "two", "sen_id": 1},
            ],
        },
        {"video1": ("one", "two")},
    ),
    "didemo.json": (
        [
            {"video": "x.avi", "description": "one", "times": [[0, 0]]},
            {"video": "x.avi", "description": "two", "times": [[1, 1]]},
            {"video": "y.mov", "description": "three", "times": [[1, 1]]},
        ],
        {"x.avi": ("one", "two"), "y.mov": ("three",)},
    ),
    "val_1.json": (
        {"v_1": {"duration": 8.0, "timestamps": [[0, 3], [3, 8]], "sentences": ["One.", "Two."]}},
        {"v_1": ("One.", "Two.")},
    ),
    "LSMDC16_challenge_1000_publictect.csv": (
        LSMDC,
        {
            "1012_Unbreakable_00.05.16.065": ("SOMEONE is walking.",),
            "1012_Unbreakable_00.10.19.170": ("He looks up.",),
        },
    ),
    "msvd.txt": ("mv8_33_46 a bird is bathing\nmv8_33_46 a bird\n", {
        "mv8_33_46": ("a bird is bathing", "a bird")
    }),
    "msvd.json": ({"v1": [["a", "bird"], "a bird bathes"]}, {"v1": ("a bird", "a bird bathes")}),
    "vatex.json": (
        [{"videoID": "G9z_000179_000189", "enCap": ["one", "two"], "chCap": ["x"]}],
        {"G9z_000179_000189": ("one", "two")},
    ),
}  # fmt: skip


def write(path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("name", FORMS)
def test_a_list_tells_its_form_by_what_it_holds(name, tmp_path):
    content, expected = FORMS[name]
    clips = read_retrieval(write(tmp_path / name, content))
    assert {clip.id: clip.captions for clip in clips.records} == expected
    assert clips.missing == tuple(expected)


def test_an_id_stands_for_the_file_of_that_name_anywhere_below_the_root(tmp_path):
    make(tmp_path, "videos/a/x.avi.mp4", "videos/b/v_1.00.mkv", "videos/c.webm", "videos/c.txt")
    captions = {"x": ["one"], "v_1.00": ["two"], "c.mp4": ["three"], "gone": ["four"]}
    path = write(tmp_path / "list.json", captions)
    clips = read_retrieval(path, root=tmp_path / "videos", max_seconds=30)
    found = {c.id: os.path.relpath(c.path, tmp_path / "videos") for c in clips.records}
    assert found == {
        "x": "a/x.avi.mp4",
        "v_1.00": "b/v_1.00.mkv",
        "c.mp4": "c.webm",
        "gone": "gone",
    }
    assert clips.missing == ("gone",)
    assert {clip.end for clip in clips.records} == {30}


@pytest.mark.parametrize("name", ["b/000.mp4", "./000.mp4", "b/000"])
def test_a_name_with_a_folder_stands_for_no_other_file(name, tmp_path):
    make(tmp_path, "a/000.mp4")
    (tmp_path / "b").mkdir()
    captions = {"a/000.mp4": ["one"], name: ["two"]}
    clips = read_retrieval(write(tmp_path / "list.json", captions))
    assert clips.missing == (name,)


def test_an_id_of_several_files_is_refused(tmp_path):
    make(tmp_path, "a/x.mp4", "b/x.avi")
    with pytest.raises(AnnotationError, match=r"a/x\.mp4 and .*b/x\.avi"):
        read_retrieval(write(tmp_path / "list.json", {"x": ["one"]}))


def test_a_video_that_is_listed_twice_is_one_with_all_captions(tmp_path):
    items = [{"video": name, "caption": name} for name in ("a.mp4", "b.mp4")]
    items.append({"video": "a.mp4", "caption": "another"})
    clips = read_retrieval(write(tmp_path / "list.json", items))
    assert [clip.captions for clip in clips.records] == [("a.mp4", "another"), ("b.mp4",)]
    assert clips.repeated == ("a.mp4",)


@pytest.mark.parametrize("name", ["./v.mp4", "../videos/v.mp4", "v", "v.avi", "link.mp4"])
def test_a_video_that_is_named_differently_is_the_same(name, tmp_path):
    videos = tmp_path / "videos"
    make(videos, "v.mp4", "w.mp4")
    (videos / "link.mp4").symlink_to("v.mp4")
    items = [{"video": n, "caption": n} for n in ("v.mp4", "w.mp4", name)]
    path = write(tmp_path / "list.json", items)
    for split in (None, write(tmp_path / "split.txt", f"v.mp4\nw.mp4\n{name}\n")):
        clips = read_retrieval(path, root=videos, videos=split)
        assert [clip.captions for clip in clips.records] == [("v.mp4", name), ("w.mp4",)]
        assert [clip.id for clip in clips.records] == ["v.mp4", "w.mp4"]
        assert clips.repeated == ("v.mp4",)


@pytest.mark.parametrize("name", ["test_list.txt", "val_ids.json"])
def test_another_list_says_which_videos_there_are(name, tmp_path):
    path = write(tmp_path / "captions.json", {v: [v] for v in ("a", "b", "c")})
    chosen = ["c", "a"]
    videos = write(tmp_path / name, chosen if name.endswith("json") else "\n".join(chosen))
    assert [clip.id for clip in read_retrieval(path, videos=videos).records] == chosen
    with pytest.raises(AnnotationError, match="1 others: d"):
        read_retrieval(path, videos=write(tmp_path / "others.txt", "d\n"))


@pytest.mark.parametrize("chosen", ["b/0.mp4", "./b/0.mp4", "v/../b/0.mp4"])
def test_a_chosen_name_with_a_folder_is_that_of_one_video(chosen, tmp_path):
    path = write(tmp_path / "list.json", {v: [v] for v in ("a/0.mp4", "b/0.mp4", "c/0.mp4")})
    clips = read_retrieval(path, videos=write(tmp_path / "split.txt", f"{chosen}\n"))
    assert [clip.captions for clip in clips.records] == [("b/0.mp4",)]
    with pytest.raises(AnnotationError, match=r"1 others: d/0\.mp4"):
        read_retrieval(path, videos=write(tmp_path / "split.txt", "d/0.mp4\n"))


def test_a_chosen_id_of_several_videos_is_refused(tmp_path):
    path = write(tmp_path / "list.json", {v: [v] for v in ("a/0.mp4", "b/0.mp4", "c/1.mp4")})
    clips = read_retrieval(path, videos=write(tmp_path / "split.txt", "1\n"))
    assert [clip.id for clip in clips.records] == ["c/1.mp4"]
    with pytest.raises(AnnotationError, match=r"0, which may be a/0\.mp4 and b/0\.mp4"):
        read_retrieval(path, videos=write(tmp_path / "split.txt", "1\n0\n"))


def test_ids_of_several_files_matter_only_where_they_are_chosen(tmp_path):
    make(tmp_path, "a/x.mp4", "b/x.mp4", "a/y.mp4")
    path = write(tmp_path / "list.json", {v: [v] for v in ("x", "y")})
    clips = read_retrieval(path, videos=write(tmp_path / "split.txt", "a/y.mp4"))
    assert [(clip.id, clip.path) for clip in clips.records] == [("y", str(tmp_path / "a/y.mp4"))]
    with pytest.raises(AnnotationError, match=r"a/x\.mp4 and .*b/x\.mp4"):
        read_retrieval(path, videos=write(tmp_path / "split.txt", "x"))


def test_our_own_lists_say_from_where_to_where_a_clip_is(tmp_path):
    make(tmp_path, "a.mp4")
    lines = [
        {"video": "a.mp4", "caption": "one", "start": 1, "end": 2},
        {"video": "b.mp4", "caption": ["two", "three"]},
    ]
    path = write(tmp_path / "list.jsonl", "\n".join(map(json.dumps, lines)))
    clips = read_retrieval(path)
    assert [(c.start, c.end, c.captions) for c in clips.records] == [
        (1, 2, ("one",)),
        (None, None, ("two", "three")),
    ]
    assert clips.missing == ("b.mp4",)
    for option in ({"max_seconds": 30}, {"videos": path}):
        with pytest.raises(ValueError, match=f"--config.eval_data.{next(iter(option))} out"):
            read_retrieval(path, **option)


def test_clips_without_captions_are_named_with_their_lines(tmp_path):
    lines = [{"video": f"{n}.mp4", "caption": "one"} for n in range(2)]
    lines[1:1] = [{"video": "a.mp4"}, {"video": "b.mp4", "caption": ["one", " "]}]
    lines.append({"video": "c.mp4", "caption": []})
    path = write(tmp_path / "list.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(AnnotationError) as error:
        read_retrieval(path)
    assert [problem.line for problem in error.value.problems] == [2, 3, 5]
    assert all(name in str(error.value) for name in ("3 of 5", "a.mp4", "c.mp4"))


@pytest.mark.parametrize("name", ["v.mp4", "./v.mp4", "../videos/v.mp4", "link.mp4"])
def test_a_clip_that_jsonl_has_twice_is_one_with_all_captions(name, tmp_path):
    videos = tmp_path / "videos"
    make(videos, "v.mp4")
    (videos / "link.mp4").symlink_to("v.mp4")
    first = {"video": "v.mp4", "caption": "one"}
    again = {"video": name, "caption": ["two", "three"]}
    for ids in (({}, {}), ({"id": "x"}, {}), ({"id": "x"}, {"id": "y"}), ({"start": 0}, {})):
        lines = [json.dumps(line | own) for line, own in zip((first, again), ids, strict=True)]
        path = write(tmp_path / "list.jsonl", "\n".join([*lines, '{"video": "w", "caption": "w"}']))
        clips = read_retrieval(path, root=videos)
        assert [clip.captions for clip in clips.records] == [("one", "two", "three"), ("w",)]
        assert clips.repeated == (clips.records[0].id,)
        assert clips.missing == ("w",)


def test_parts_of_a_video_are_different_clips(tmp_path):
    times = [{"start": 0, "end": 1}, {"start": 1, "end": 2}, {"end": 2}, {"end": 1}]
    lines = [json.dumps({"video": "v.mp4", "caption": str(n)} | t) for n, t in enumerate(times)]
    clips = read_retrieval(write(tmp_path / "list.jsonl", "\n".join(lines)))
    assert [clip.captions for clip in clips.records] == [("0", "3"), ("1",), ("2",)]


def test_names_of_captions_stay_beside_them(tmp_path):
    lines = [
        {"video": "v.mp4", "caption": "one"},
        {"video": "v.mp4", "caption": {"audio": ["two", "three"]}},
    ]
    path = write(tmp_path / "list.jsonl", "\n".join(map(json.dumps, lines)))
    (clip,) = read_retrieval(path).records
    assert clip.captions == ("one", "two", "three")
    assert clip.caption_names == ("", "audio", "audio")
    (named,), (plain,) = (read_retrieval(path, caption=name).records for name in ("audio", ""))
    assert (named.captions, plain.captions) == (("two", "three"), ("one",))
    with pytest.raises(AnnotationError, match=r"'sound' of every clip.*('v.mp4').*'audio'"):
        read_retrieval(path, caption="sound")
    other = write(tmp_path / "list.json", {"v.mp4": ["one"]})
    with pytest.raises(ValueError, match=r"have no names.*--config.eval_data.caption out"):
        read_retrieval(other, caption="audio")


def test_an_id_of_several_clips_is_refused(tmp_path):
    lines = [json.dumps({"video": v, "caption": v, "id": "x"}) for v in ("a.mp4", "b.mp4")]
    path = write(tmp_path / "list.jsonl", "\n".join(lines))
    with pytest.raises(AnnotationError, match=r"list\.jsonl:2.*'x'.*line 1"):
        read_retrieval(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", [{"video": "a.mp4", "caption": " "}], r"captions with words.*item 1"),
        ("a.json", [{"video": "a.mp4", "caption": []}], "a caption, or a list"),
        ("a.json", [{"video": "a.mp4", "caption": 3}], "a caption, or a list.*3"),
        ("a.json", [{"video": "a.mp4", "caption": "x"}, {"caption": "x"}], "item 2"),
        ("a.json", [{"video": "a.mp4", "caption": "x"}, 7], "item 2"),
        ("a.json", [{"video": "../a.mp4", "caption": "x"}], "inside the root"),
        ("a.json", [{"video": "/etc/passwd", "caption": "x"}], "inside the root"),
        ("a.json", {"v": {"sentences": ["one", ""]}}, "captions with words.*key 'v'"),
        ("a.json", [{"video": "a.mp4", "caption": "x\ud800"}], "Unicode text"),
        ("a.json", [[1]], "videoID and enCap"),
        ("a.json", {}, "videoID and enCap"),
        ("a.json", 3, "videoID and enCap"),
        ("a.json", "[", "not valid JSON"),
        ("a.csv", CSV + "ret2,msr1,video1\n", r"a\.csv:4.*4 columns"),
        ("a.csv", "key,video_id,sentence\nret0,video1,\n", r"a\.csv:2.*captions with words"),
        ("a.csv", LSMDC + "name\tsentence\n", r"a\.csv:3"),
        ("a.csv", CSV.replace(",", ";"), r"a\.csv:1.*between commas.*key;vid_key"),
        ("a.csv", CSV.replace(",", "\t"), r"a\.csv:1.*between commas.*key.*vid_key"),
        ("a.txt", "mv8\n", r"a\.txt:1.*video caption.*between commas.*'mv8'"),
        ("a.txt", "", "at least one video"),
        ("a.jsonl", "", "at least one video"),
        ("a.jsonl", '{"video": "../a.mp4", "caption": "x"}', "inside the root"),
        ("a.jsonl", '{"caption": "x"}', r"a\.jsonl:1.*video"),
        ("a.jsonl", '{"video": "v", "captoin": "x"}', r"a\.jsonl:1.*captoin.*caption"),
    ],
)
def test_what_is_wrong_is_named(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_retrieval(write(tmp_path / name, content))


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps({"v": [["a", "bird"]]}))
    with pytest.raises(AnnotationError, match=r"json\.dump"):
        read_retrieval(path)
