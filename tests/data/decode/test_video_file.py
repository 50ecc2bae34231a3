"""What is refused, and how the refusal reads."""

import contextlib
import functools
import os
import pickle
import time

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.data.decode.video import DEFAULT_LIMITS, Limits, VideoError
from tests.data.videos import index_video, read_frames


def refusal(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> VideoError:
    started = time.monotonic()
    with pytest.raises(VideoError) as caught:
        index_video(path, limits=limits)
    assert time.monotonic() - started < 10
    assert str(caught.value).startswith(f"{os.fspath(path)}: expected ")
    assert caught.value.advice
    return caught.value


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("none.mp4", "No such file or directory"),
        ("", "a folder"),
        ("empty.mp4", "an empty file"),
        *(
            (f"text{suffix}", "an error while opening it: Inv")
            for suffix in (".mp4", ".mkv", ".ts")
        ),
    ],
)
def test_what_is_no_video(tmp_path, name, found):
    (tmp_path / "empty.mp4").touch()
    if name.startswith("text"):
        (tmp_path / name).write_text("This is no video.\n" * 1000)
    assert refusal(tmp_path / name).found.startswith(found)


def test_audio_only(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert refusal(path).reason == (
        "expected a video stream, found only audio aac; pass a file with moving pictures"
    )


def test_cover_art_is_no_video(tmp_path, render):
    cover = render(tmp_path / "cover.mkv", "mjpeg", num_frames=1, pix_fmt="yuvj420p")
    path = tmp_path / "album.mp4"
    with av.open(cover) as reader, av.open(path, "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        stream.disposition = av.stream.Disposition.attached_pic
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    assert refusal(path).found == "only cover art"


def _plain(scale, number):
    return np.full((48 * scale, 64 * scale, 3), 9 * number, np.uint8)


DEFAULT = av.stream.Disposition.default
NONE = av.stream.Disposition(0)
FILM = ("mpeg4", "yuv420p", 7, 1)
# Codec, pixel format, number of frames, scale of the picture.
STILLS = {
    "mjpeg": ("mjpeg", "yuvj420p", 1, 4),
    "png": ("png", "rgb24", 1, 4),
    "film codec": ("mpeg4", "yuv420p", 1, 4),
}


@pytest.fixture
def tracks(tmp_path, render):
    """Writes a file of several tracks with their dispositions."""

    def write(suffix, *tracks):
        readers, path = [], tmp_path / f"tracks{suffix}"
        for number, ((codec, pix_fmt, count, scale), _) in enumerate(tracks):
            readers.append(
                render(
                    tmp_path / f"{number}.nut",
                    codec,
                    pix_fmt=pix_fmt,
                    num_frames=count,
                    picture=functools.partial(_plain, scale),
                )
            )
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(av.open(reader)) for reader in readers]
            writer = stack.enter_context(av.open(path, "w"))
            packets = []
            for reader, (_, disposition) in zip(opened, tracks, strict=True):
                stream = writer.add_stream_from_template(reader.streams.video[0])
                stream.disposition = disposition
                packets += [(p.pts * p.time_base, stream, p) for p in reader.demux() if p.size]
            for _, stream, packet in sorted(packets, key=lambda item: item[0]):
                packet.stream = stream
                writer.mux(packet)
        return path

    return write


@pytest.mark.parametrize(
    ("still", "suffix"),
    [("mjpeg", ".mkv"), ("mjpeg", ".mp4"), ("png", ".mp4"), ("film codec", ".mkv")],
)
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("default", ["film", "still", "none"])
def test_the_film_is_taken_not_a_still(tracks, still, suffix, is_first, default):
    film = (FILM, DEFAULT if default == "film" else NONE)
    picture = (STILLS[still], DEFAULT if default == "still" else NONE)
    path = tracks(suffix, *((picture, film) if is_first else (film, picture)))
    index = index_video(path)
    assert (index.width, index.height, index.num_frames) == (64, 48, 7)
    assert read_frames(path, [6]).frames.shape == (1, 48, 64, 3)


@pytest.mark.parametrize(("first", "second", "width"), [(1, 2, 128), (2, 1, 64), (1, 1, 64)])
def test_of_several_films_the_default_is_taken(tracks, first, second, width):
    films = [("mpeg4", "yuv420p", 7, scale) for scale in (first, second)]
    assert index_video(tracks(".mkv", (films[0], NONE), (films[1], DEFAULT))).width == width


def test_the_largest_film_is_taken_where_none_is_the_default(tracks):
    films = [("mpeg2video", "yuv420p", 7, scale) for scale in (1, 2)]
    assert index_video(tracks(".ts", *((film, NONE) for film in films))).width == 128


def test_a_lone_still_is_a_video_of_one_frame(tracks):
    assert index_video(tracks(".mkv", (STILLS["mjpeg"], DEFAULT))).num_frames == 1


def test_devices_and_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "may never end" in refusal(tmp_path / "pipe.mp4").found
    assert "may never end" in refusal("/dev/zero").found


@pytest.mark.parametrize("suffix", [".mp4", ".mpg", ".ts", ".avi", ".h264"])
def test_huge_file_of_nothing(tmp_path, suffix):
    path = tmp_path / f"zeros{suffix}"
    with path.open("wb") as file:
        file.truncate(2**36)
    refusal(path, Limits(open_timeout=0.3, read_timeout=0.3, deadline=1))


def test_endless_packets_end_with_the_deadline(tmp_path, render):
    # An elementary stream repeated 2000 times: nothing announces its end.
    once = render(tmp_path / "once.h264", num_frames=10).read_bytes()
    path = tmp_path / "long.h264"
    path.write_bytes(once * 2000)
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"Limits\.deadline"):
        index_video(path, limits=Limits(deadline=0.1))
    assert time.monotonic() - started < 5


def test_endless_loop_is_shown_once(tmp_path, render):
    path = render(tmp_path / "loop.gif", "gif", pix_fmt="rgb8", container_options={"loop": "0"})
    assert index_video(path).num_frames == 30


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{video}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{video}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile '{video}'\nfile 'list.ffconcat'\n"),
    ],
)
def test_playlists_open_nothing(tmp_path, h264, name, text):
    path = tmp_path / name
    path.write_text(text.format(video=h264))
    refusal(path)


@pytest.mark.parametrize("prefix", ["concat:", "file:", "subfile,,start,0,end,0,,:"])
def test_names_are_not_taken_for_protocols(tmp_path, h264, prefix, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(f"{prefix}{h264}").found == "No such file or directory"
    odd = f"{prefix.replace('/', '')}%03d.mp4"
    (tmp_path / odd).write_bytes(h264.read_bytes())
    assert index_video(odd).num_frames == 30


def test_errors_survive_pickling():
    error = VideoError("a.mp4", "x", "y", "z")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.found) == (str(error), "y") == ("a.mp4: expected x, found y; z", "y")


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory, render):
    folder = tmp_path_factory.mktemp("tiny")
    options = {"g": "4", "bf": "1"}
    return [
        render(
            folder / f"{codec}{suffix}", codec, options=options, num_frames=6, fps=25
        ).read_bytes()
        for codec, suffix in (
            ("libx264", ".mp4"),
            ("mpeg4", ".avi"),
            ("mpeg4", ".mkv"),
            ("mpeg2video", ".ts"),
        )
    ]


@settings(max_examples=150)
@given(data=st.data())
def test_mutilated_files_are_read_or_refused(tmp_path_factory, tiny_files, data):
    content = bytearray(data.draw(st.sampled_from(tiny_files)))
    edits = st.tuples(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=8))
    for position, replacement in data.draw(st.lists(edits, min_size=1, max_size=12)):
        content[position : position + len(replacement)] = replacement
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(1, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "mutilated"
    path.write_bytes(content)
    try:
        index = index_video(path, limits=Limits(deadline=5))
        clip = read_frames(path, [0, index.num_frames - 1], limits=Limits(deadline=5))
    except VideoError:
        return
    assert clip.frames.shape == (2, index.height, index.width, 3)
    assert np.all(np.diff(index.timestamps) >= 0)
