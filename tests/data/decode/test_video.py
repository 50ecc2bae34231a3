"""Frames by number, from all kinds of files."""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from internvideo_jax.data.decode.video import Limits, VideoError, VideoReader
from internvideo_jax.data.decode.video_file import VideoFile
from tests.data.videos import index_video, read_frames

GROUPS = {"g": "8", "bf": "2"}

# name: (encoder, options, pixel format, whether timestamps name the frames)
FILES = {
    "h264.mp4": ("libx264", {**GROUPS, "x264-params": "open-gop=1"}, "yuv420p", True),
    "h264.mkv": ("libx264", GROUPS, "yuv420p", True),
    "h264.ts": ("libx264", GROUPS, "yuv420p", True),
    "refresh.ts": ("libx264", {"x264-params": "intra-refresh=1:keyint=8"}, "yuv420p", True),
    # AVI and elementary streams state no presentation times for reordered frames.
    "h264.avi": ("libx264", GROUPS, "yuv420p", False),
    "h264.h264": ("libx264", GROUPS, "yuv420p", False),
    "mpeg4.mp4": ("mpeg4", GROUPS, "yuv420p", True),
    "mpeg4.avi": ("mpeg4", GROUPS, "yuv420p", False),
    "plain.avi": ("mpeg4", {"g": "8"}, "yuv420p", True),
    "mjpeg.avi": ("mjpeg", {}, "yuvj420p", True),
    "mpeg1.mpg": ("mpeg1video", GROUPS, "yuv420p", False),
    "mpeg2.ts": ("mpeg2video", GROUPS, "yuv420p", True),
    "hevc.mov": ("libx265", {"x265-params": "keyint=8:log-level=none"}, "yuv420p", True),
    "vp9.webm": ("libvpx-vp9", {"g": "8", "cpu-used": "8"}, "yuv420p", True),
    "vp8.webm": ("libvpx", {"g": "8", "cpu-used": "8"}, "yuv420p", True),
    "wmv2.wmv": ("wmv2", {"g": "8"}, "yuv420p", True),
    "flv1.flv": ("flv", {"g": "8"}, "yuv420p", True),
    "animation.gif": ("gif", {}, "rgb8", True),
}


def all_frames(path: Path) -> np.ndarray:
    """Every frame, decoded from the beginning in one go."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def numbers(frames: np.ndarray, number_of: Callable[[np.ndarray], int]) -> list[int]:
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize("name", FILES)
def test_frame_k_is_the_kth_shown(tmp_path, render, number_of, name):
    codec, options, pix_fmt, is_by_time = FILES[name]
    fps = 25  # what FFmpeg assumes of elementary streams
    path = render(tmp_path / name, codec, options=options, pix_fmt=pix_fmt, fps=fps)
    index = index_video(path)
    assert (index.num_frames, index.width, index.height) == (30, 64, 48)
    assert (index.pts is not None) == is_by_time
    expected = all_frames(path)
    # Containers may start their clocks one frame late, and count in milliseconds.
    np.testing.assert_allclose(index.timestamps, np.arange(30) / fps, atol=1.01 / fps)
    with VideoReader(path) as reader:
        for k in np.random.default_rng(0).permutation(30):
            (frame,) = reader.read([k])
            assert number_of(frame) == k
            assert np.array_equal(frame, expected[k])
    np.testing.assert_allclose(np.diff(index.timestamps), 1 / fps, atol=2e-3)
    assert index.duration == pytest.approx(30 / fps, abs=0.02)


def test_indices_may_repeat_and_be_unordered(h264, number_of):
    clip = read_frames(h264, [9, 2, 9, 29, 0])
    assert numbers(clip.frames, number_of) == [9, 2, 9, 29, 0]
    assert clip.frames.dtype == np.uint8
    np.testing.assert_allclose(clip.timestamps, [0.9, 0.2, 0.9, 2.9, 0.0])
    through = read_frames(h264, range(30)).frames
    assert np.array_equal(clip.frames, through[[9, 2, 9, 29, 0]])


def test_lossless_remux_changes_nothing(tmp_path, h264, remux):
    # mp4 stores decoding times and an edit list, Matroska milliseconds of presentation only.
    copy = remux(h264, tmp_path / "copy.mkv")
    original = read_frames(h264, range(30))
    copied = read_frames(copy, range(30))
    assert np.array_equal(copied.frames, original.frames)
    np.testing.assert_allclose(copied.timestamps, original.timestamps, atol=1e-3)


def test_variable_frame_rate_keeps_its_times(tmp_path, render, number_of):
    times = [0, 1, 2, 10, 11, 30, 31, 32, 33, 90]
    path = render(tmp_path / "v.mp4", options=GROUPS, num_frames=10, pts=times)
    clip = read_frames(path, range(10))
    assert numbers(clip.frames, number_of) == list(range(10))
    np.testing.assert_allclose(clip.timestamps, np.array(times) / 10)


def test_edit_list_hides_the_frames_before_it(tmp_path, h264, remux, number_of):
    def shift(_, packet):
        # Half a second (in mp4's ticks) before zero: the muxer writes an edit list, from within
        # the first group of pictures.
        ticks = round(0.5 / packet.time_base)
        packet.pts -= ticks
        packet.dts -= ticks
        return packet

    path = remux(
        h264, tmp_path / "edit.mp4", shift, container_options={"avoid_negative_ts": "disabled"}
    )
    clip = read_frames(path, range(index_video(path).num_frames))
    assert numbers(clip.frames, number_of) == list(range(5, 30))
    np.testing.assert_allclose(clip.timestamps[0], 0, atol=1e-9)


def test_frames_that_lack_their_reference_are_not_counted(tmp_path, h264, remux, number_of):
    # Without its first keyframe, the file starts with pictures that no decoder can show.
    path = remux(h264, tmp_path / "cut.mkv", lambda number, p: p if number > 2 else None)
    index = index_video(path)
    shown = numbers(read_frames(path, range(index.num_frames)).frames, number_of)
    assert shown == numbers(all_frames(path), number_of)
    assert 0 < len(shown) < 27


def test_equal_timestamps_are_counted_through(tmp_path, render, remux, number_of):
    def stutter(number, packet):
        packet.pts = packet.dts = packet.pts // 2
        return packet

    source = render(tmp_path / "source.mkv", "mjpeg", pix_fmt="yuvj420p", fps=1000)
    path = remux(source, tmp_path / "equal.mkv", stutter)
    index = index_video(path)
    assert (index.pts, index.num_frames) == (None, 30)
    assert numbers(read_frames(path, [1, 2, 29]).frames, number_of) == [1, 2, 29]


def test_hidden_vp8_pictures_are_not_frames(tmp_path, render, number_of):
    source = render(tmp_path / "source.webm", "libvpx", options={"cpu-used": "8"})
    path = tmp_path / "hidden.webm"
    with av.open(source) as reader, av.open(path, "w") as writer:
        stream = reader.streams.video[0]
        copied = writer.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in reader.demux(stream) if p.size):
            packet.stream = copied
            writer.mux(packet)
            if number == 12:
                # The same picture once more, but never to be shown: bit 4 of the frame header.
                data = bytearray(bytes(packet))
                data[0] &= ~0x10
                hidden = av.Packet(bytes(data))
                hidden.stream, hidden.time_base = copied, packet.time_base
                hidden.pts = hidden.dts = packet.pts + 1
                writer.mux(hidden)
    index = index_video(path)
    assert index.num_frames == 30
    assert numbers(read_frames(path, [12, 13, 29]).frames, number_of) == [12, 13, 29]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rotation_is_honoured(tmp_path, render, number_of, suffix, degrees):
    path = render(
        tmp_path / f"turned{suffix}", "mpeg4", num_frames=3, rotation=(degrees, False, False)
    )
    index, frames = index_video(path), read_frames(path, range(3)).frames
    assert frames.shape[1:3] == (index.height, index.width)
    assert numbers(np.rot90(frames, -degrees // 90, axes=(1, 2)), number_of) == [0, 1, 2]
    assert np.array_equal(frames[0], cv2.VideoCapture(str(path)).read()[1][..., ::-1])


def test_mirrored_video_is_mirrored_back(tmp_path, render, number_of):
    path = render(tmp_path / "m.mp4", "mpeg4", num_frames=4, rotation=(90, True, False))
    frames = read_frames(path, range(4)).frames
    # FFmpeg's display matrix turns first (against the clock), then mirrors.
    stored = np.rot90(frames[:, :, ::-1], -1, axes=(1, 2))
    assert numbers(stored, number_of) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        # Y 120, Cb 90, Cr 200 in the three conversions that the tags select.
        ({}, (236, 77, 44)),
        ({"colorspace": 1, "color_range": 1}, (250, 91, 41)),
        ({"colorspace": 5, "color_range": 2}, (221, 82, 53)),
    ],
    ids=["untagged", "bt709", "full_range"],
)
def test_colours_follow_the_tags(tmp_path, flags, expected):
    path = tmp_path / "colour.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for name, value in flags.items():
            setattr(stream.codec_context, name, value)
        planes = np.concatenate(
            [np.full(n, v, np.uint8) for n, v in ((1024, 120), (256, 90), (256, 200))]
        )
        frame = av.VideoFrame.from_ndarray(planes.reshape(48, 32), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    # FFmpeg's byte arithmetic rounds within 2 of the exact matrix.
    np.testing.assert_allclose(read_frames(path, [0]).frames[0, 16, 16], expected, atol=2)


def test_a_change_of_size_is_scaled_to_the_first(tmp_path, render):
    def flat(height, width):
        return lambda number: np.full((height, width, 3), 8 * number, np.uint8)

    small = render(tmp_path / "small.ts", num_frames=10, picture=flat(32, 48)).read_bytes()
    large = render(tmp_path / "large.ts", num_frames=10, picture=flat(64, 96)).read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(small + large)
    frames = read_frames(path, [5, 15]).frames
    assert frames.shape == (2, 32, 48, 3)
    assert np.abs(frames.astype(int) - 40).max() <= 4


def test_damaged_frames_are_named(tmp_path, h264, overwritten, number_of):
    def from_last_keyframe(packets):
        return packets[max(i for i, p in enumerate(packets) if p.is_keyframe) :]

    path = tmp_path / "damaged.mp4"
    # The tables, at the end of the file, stay.
    path.write_bytes(overwritten(h264, from_last_keyframe))
    assert index_video(path).num_frames == 30
    with VideoReader(path) as reader:
        assert numbers(reader.read([0, 9]), number_of) == [0, 9]
        assert reader.damaged_frames == 0
    with pytest.raises(VideoError, match=r"frame 29 \(at 2\.900 s\) damaged"):
        read_frames(path, [0, 29])


def test_frames_with_damaged_parts_are_shown_and_counted(tmp_path, render):
    # Fine detail, so that there is something in the middle of a packet.
    path = render(tmp_path / "whole.mp4", "libx264", options={"crf": "1"}, fps=10)
    with av.open(path) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    packet = max((p for p in packets if p.pts and not p.is_keyframe), key=lambda p: p.size)
    data = bytearray(path.read_bytes())
    middle = packet.pos + packet.size // 2
    data[middle : middle + 40] = bytes(range(200, 240))
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    for file, count in ((path, 0), (damaged, 1)):
        with VideoReader(file) as reader:
            reader.read(range(reader.index.num_frames))
            assert reader.damaged_frames == count


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(deadline=0), r"at most 0 s.*Limits\.deadline"),
        (Limits(max_frames=29), "at most 29 frames"),
        (Limits(max_frame_pixels=64 * 48 - 1), "at most 3071 pixels, found 64x48"),
    ],
)
def test_time_frames_and_their_size_are_limited(h264, limits, message):
    with pytest.raises(VideoError, match=message):
        index_video(h264, limits=limits)


def test_clip_size_is_limited_unless_transformed(h264):
    limits = Limits(max_clip_pixels=2 * 64 * 48)
    assert len(read_frames(h264, [0, 1, 1, 0], limits=limits).frames) == 4
    with pytest.raises(VideoError, match="3 frames of 64x48"):
        read_frames(h264, [0, 1, 2], limits=limits)
    assert len(read_frames(h264, [0, 1, 2], limits=limits, transform=lambda f: f[:2]).frames) == 3


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_recordings_joined_end_to_end(tmp_path, render, number_of, picture_of, monkeypatch, codec):
    # Timestamps begin anew with each; B-frames at either end of every second one.
    joined = tmp_path / "joined.ts"
    for piece in range(5):
        part = render(
            tmp_path / f"{piece}.ts",
            codec,
            num_frames=20,
            fps=25,
            options={"g": "6", "bf": str(piece % 2 * 2)},
            picture=lambda number, first=20 * piece: picture_of(first + number),
        )
        with joined.open("ab") as file:
            file.write(part.read_bytes())
    index = index_video(joined)
    assert index.num_frames == 100
    assert index.timestamps == pytest.approx(np.arange(100) / 25, abs=1e-3)
    assert index.duration == pytest.approx(4)
    # None of it is decoded to find them, and little to read one.
    packets = []
    decode = VideoFile.decode
    monkeypatch.setattr(
        VideoFile, "decode", lambda self, packet: packets.append(packet) or decode(self, packet)
    )
    with VideoReader(joined) as reader:
        assert len(packets) < 10
        for numbers in ([99], [0], [47, 21, 22, 79, 80]):
            packets.clear()
            frames = reader.read(numbers)
            assert [number_of(frame) for frame in frames] == numbers
            assert len(packets) < 15 * len(numbers)
        frames = reader.read(range(100))
        assert [number_of(frame) for frame in frames] == list(range(100))


def test_hundreds_of_joined_recordings(tmp_path, render, number_of):
    part = render(tmp_path / "a.ts", "mpeg2video", num_frames=12, fps=25)
    (tmp_path / "joined.ts").write_bytes(200 * part.read_bytes())
    with VideoReader(tmp_path / "joined.ts") as reader:
        assert reader.num_frames == 200 * 12
        assert reader.index.duration == pytest.approx(200 * 12 / 25)
        numbers = [0, 1199, 1200, 2399]
        assert [number_of(frame) for frame in reader.read(numbers)] == [0, 11, 0, 11]


def test_a_joined_recording_may_begin_in_the_middle(tmp_path, render):
    options = {"g": "6", "bf": "2"}
    part = render(tmp_path / "a.ts", "mpeg2video", num_frames=40, fps=25, options=options)
    data = part.read_bytes()
    cut = data[len(data) // 2 // 188 * 188 :]
    (tmp_path / "joined.ts").write_bytes(cut + cut)
    with VideoReader(tmp_path / "joined.ts") as reader:
        assert 30 < reader.num_frames < 45
        assert np.all(np.diff(reader.index.timestamps) > 0)
        assert len(reader.read(range(reader.num_frames))) == reader.num_frames
