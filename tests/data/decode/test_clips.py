"""Clips of video files, folders of images and single images."""

import os
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.clip_check import check_clip
from internvideo_jax.data.decode.clips import image_names, open_clip, read_image
from internvideo_jax.data.decode.video import Limits, VideoError, frame_range
from internvideo_jax.data.decode.video_file import VideoFile
from tests.data.videos import index_video, read_frames


def clip(path: Path, **fields: object) -> ClipRecord:
    return ClipRecord(**{"id": "c", "path": str(path), **fields})


def gray(value: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Images 1 to 12, each as grey as its number says."""
    (tmp_path / "frames").mkdir()
    for number in range(1, 13):
        Image.fromarray(gray(number)).save(tmp_path / "frames" / f"img_{number:05}.png")
    return tmp_path / "frames"


def values(frames: np.ndarray) -> list[int]:
    return frames[:, 0, 0, 0].tolist()


def test_video_files(h264, number_of):
    with open_clip(clip(h264)) as reader:
        assert (reader.num_frames, reader.fps) == (30, pytest.approx(10))
        frames = reader.read([19, 3, 3])
    assert (frames.shape, frames.dtype) == ((3, 48, 64, 3), np.uint8)
    assert [number_of(frame) for frame in frames] == [19, 3, 3]
    with open_clip(clip(h264, start=0.5, end=1.2)) as reader:
        assert reader.num_frames == 7
        assert [number_of(frame) for frame in reader.read([0, 6])] == [5, 11]


def test_a_file_in_memory_needs_none_on_disk(tmp_path, h264):
    record = clip(tmp_path / "gone.mp4", start=1.0)
    with open_clip(record, data=h264.read_bytes()) as reader:
        assert reader.num_frames == 20
        assert np.array_equal(reader.read([2, 0]), read_frames(h264, [12, 10]).frames)
    with pytest.raises(VideoError, match=r"gone\.mp4: expected .* found no bytes"):
        open_clip(record, data=b"")
    with pytest.raises(VideoError, match=r"gone\.mp4: .* truncated .* announces \d+ bytes"):
        open_clip(record, data=h264.read_bytes()[:-100])
    with pytest.raises(VideoError, match=r"gone\.mp4: expected a video file"):
        open_clip(record, data=b"no video" * 100)


def test_times_choose_what_is_on_screen(tmp_path, render, number_of):
    # Of a variable rate: frame 3 is on screen from 1.0 s to 3.0 s.
    ticks = [0, 1, 2, 10, 30, 31, 32, 90]
    path = render(tmp_path / "v.mp4", num_frames=8, pts=ticks)
    index = index_video(path)
    for times, expected in {
        (None, None): (0, 8),
        (0, 0.2): (0, 2),
        (0.2, 1): (2, 3),
        (2.0, 2.5): (3, 4),
        (2.0, 3.01): (3, 5),
        (3.1, None): (5, 8),
        (None, 0.05): (0, 1),
        (5.0, 8.0): (6, 7),
        (5.0, 1000.0): (6, 8),
    }.items():
        assert frame_range(index, *times) == expected, times
    with open_clip(clip(path, start=2.0, end=3.01)) as reader:
        assert [number_of(frame) for frame in reader.read(range(2))] == [3, 4]


def test_times_at_frames_are_exact(tmp_path, render):
    index = index_video(render(tmp_path / "a.mp4", num_frames=100, fps=30))
    # Most of these decimals are no multiples of a tick in binary.
    for number in range(100):
        assert frame_range(index, number / 30, (number + 1) / 30) == (number, number + 1)
        assert frame_range(index, 0.0, round((number + 1) / 30, 6))[1] == number + 1


def test_a_clip_after_the_end_is_refused(h264):
    with pytest.raises(
        VideoError, match=r"before the file's end at 3\.000 s, found a start at 3 s"
    ):
        open_clip(clip(h264, start=3.0))
    with open_clip(clip(h264, start=2.95)) as reader:
        assert reader.num_frames == 1


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_of_images_begin_with_0_or_1(tmp_path, first):
    for number in range(first, first + 5):
        Image.fromarray(gray(number)).save(tmp_path / f"img_{number:05}.png")
    with open_clip(clip(tmp_path, num_frames=5, frame_pattern="img_{:05}.png")) as reader:
        assert values(reader.read(range(5))) == list(range(first, first + 5))
    # Both are there: the list decides, which counts from 1.
    Image.fromarray(gray(0)).save(tmp_path / "img_00000.png")
    record = clip(tmp_path, num_frames=4, frame_pattern="img_{:05}.png")
    with open_clip(record) as reader:
        assert values(reader.read(range(4))) == [1, 2, 3, 4]


def test_hidden_images_are_none(folder):
    (folder / "._img_00001.png").write_bytes(b"Mac OS X")
    Image.fromarray(gray(99)).save(folder / ".thumb.jpg")
    (folder / ".ipynb_checkpoints").mkdir()
    with open_clip(clip(folder)) as reader:
        assert values(reader.read(range(reader.num_frames))) == list(range(1, 13))


def test_frames_outside_the_clip_are_refused(h264, folder):
    images = clip(folder, num_frames=10, frame_pattern="img_{:05}.png")
    for record in (clip(h264, start=1.0, end=2.0), images):
        with open_clip(record) as reader:
            assert reader.num_frames == 10
            for wanted in ([10], [-1]):
                with pytest.raises(ValueError, match="frame numbers from 0 to 9"):
                    reader.read(wanted)
            with pytest.raises(ValueError, match="list of frame numbers"):
                reader.read([])


def test_a_long_file_is_only_indexed(tmp_path, monkeypatch):
    # Ten hours at a frame per 10 s.
    path = tmp_path / "long.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"g": "50"})
        stream.width = stream.height = 16
        stream.codec_context.time_base = Fraction(1, 25)
        for number in range(3600):
            frame = av.VideoFrame.from_ndarray(gray(20 + number % 10 * 20, 16, 16), format="rgb24")
            frame.pts, frame.time_base = number * 250, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    decoded, decode = [], VideoFile.decode
    monkeypatch.setattr(
        VideoFile, "decode", lambda self, packet: decoded.append(1) or decode(self, packet)
    )
    with open_clip(clip(path, start=18_000.0, end=18_100.0)) as reader:
        assert reader.num_frames == 10
        assert reader.fps == pytest.approx(0.1, rel=1e-3)
        # Frame 1800 and those after it.
        assert values(reader.read([0, 9])) == pytest.approx([20, 200], abs=6)
    # A frame of it for the index, and groups of 50 pictures.
    assert len(decoded) < 200


def test_frames_beyond_the_limits_are_refused(tmp_path, h264, folder):
    small = Limits(max_frame_pixels=20)
    with pytest.raises(VideoError, match="at most 20 pixels, found 64x48"):
        open_clip(clip(h264), limits=small)
    with pytest.raises(VideoError, match=r"img_00001\.png: .* at most 20 pixels, found 6x4"):
        open_clip(clip(folder), limits=small)
    with open_clip(clip(folder), limits=Limits(max_clip_pixels=50)) as reader:
        assert values(reader.read([1, 0, 1])) == [2, 1, 2]
        with pytest.raises(VideoError, match="at most 50 pixels, found 3 frames of 6x4"):
            reader.read([0, 1, 2])
        assert values(reader.read([0, 1, 2], transform=lambda frame: frame[:1])) == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_8k_passes_and_more_does_not(tmp_path):
    def png(width, height):
        path = tmp_path / f"{width}.png"
        Image.new("1", (width, height)).save(path)
        return path

    assert read_image(str(png(7680, 4320))).shape == (4320, 7680, 3)
    with pytest.raises(VideoError, match="at most 37748736 pixels, found 16384x8192"):
        read_image(str(png(16384, 8192)))
    # Pillow itself stops at this one.
    with pytest.raises(VideoError, match="undamaged JPEG or PNG"):
        read_image(str(png(20_000, 20_000)))


def test_8k_video_passes_and_more_does_not(tmp_path):
    def mjpeg(width, height):
        path = tmp_path / "large.mp4"
        with av.open(path, "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
            container.mux(stream.encode(av.VideoFrame(width, height, "yuvj420p")))
            container.mux(stream.encode())
        return path

    with open_clip(clip(mjpeg(7680, 4320))) as reader:
        assert reader.read([0], transform=lambda frame: frame[::99, ::99]).shape == (1, 44, 78, 3)
    # The picture's own header says 65520x8192, that of the container 64x48.
    path = mjpeg(64, 48)
    data = path.read_bytes()
    start = data.index(bytes.fromhex("ffc00011080030 0040"))
    large = (8192).to_bytes(2, "big") + (65520).to_bytes(2, "big")
    path.write_bytes(data[: start + 5] + large + data[start + 9 :])
    with pytest.raises(
        VideoError, match="none of which can be decoded into frames of at most 37748736"
    ):
        open_clip(clip(path))


@pytest.mark.parametrize("large", [100, 100_000])
def test_large_pictures_are_decoded_one_at_a_time(tmp_path, h264, monkeypatch, large):
    monkeypatch.setattr("internvideo_jax.data.decode.video_file._LARGE_PIXELS", large)
    active, most = [], []

    def slow(frame):
        active.append(1)
        most.append(len(active))
        time.sleep(0.02)
        active.pop()
        return frame

    def read(_):
        with open_clip(clip(h264)) as reader:
            return reader.read(range(5), transform=slow)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(read, range(4))
    assert all(np.array_equal(first, other) for other in others)
    assert (max(most) > 1) == (large > 100)


def test_a_tiny_file_with_a_huge_picture_is_refused(tmp_path):
    size = (8191).to_bytes(2, "little") * 2
    gif = b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"," + bytes(4) + size
    with pytest.raises(VideoError, match="frames of at most 37748736 pixels"):
        open_clip(clip(tmp_path / "a.gif"), data=gif + b"\0\2\2\x4c\1\0;")


def test_numbered_images(folder):
    record = clip(folder, num_frames=12, frame_pattern="img_{:05}.png")
    with open_clip(record) as reader:
        assert (reader.num_frames, reader.fps) == (12, None)
        frames = reader.read([11, 0, 0])
    assert (frames.shape, frames.dtype) == ((3, 4, 6, 3), np.uint8)
    assert values(frames) == [12, 1, 1]
    assert image_names(record)[::11] == [f"{folder}/img_00001.png", f"{folder}/img_00012.png"]


def test_images_of_upstream_patterns_are_jpeg(tmp_path):
    for pattern in ("img_{:05}.jpg", "{:05}.jpg"):
        for number in (1, 2):
            Image.fromarray(gray(100 * number)).save(tmp_path / pattern.format(number))
        with open_clip(clip(tmp_path, num_frames=2, frame_pattern=pattern)) as reader:
            assert values(reader.read([0, 1])) == [100, 200]


def test_images_without_pattern_are_in_natural_order(tmp_path):
    for name, value in (("a10.png", 10), ("a2.png", 2), ("a1.png", 1), ("B.PNG", 0)):
        Image.fromarray(gray(value)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    with open_clip(clip(tmp_path)) as reader:
        assert values(reader.read(range(4))) == [0, 1, 2, 10]
    assert [os.path.basename(name) for name in image_names(clip(tmp_path))] == [
        "B.PNG",
        "a1.png",
        "a2.png",
        "a10.png",
    ]


def test_images_in_memory(tmp_path, folder):
    images = [(folder / f"img_{number:05}.png").read_bytes() for number in (3, 1, 2)]
    record = clip("/gone", num_frames=3, frame_pattern="img_{:05}.png")
    with open_clip(record, data=images) as reader:
        assert values(reader.read([2, 0])) == [2, 3]
    with open_clip(clip("/gone/one.png"), data=images[0]) as reader:
        assert (reader.num_frames, values(reader.read([0]))) == (1, [3])
    with pytest.raises(VideoError, match=r"/gone/img_00002\.png: .*undamaged JPEG or PNG"):
        with open_clip(record, data=[images[0], images[1][:20]]) as reader:
            reader.read([1])
    with pytest.raises(VideoError, match="images, found 0"):
        open_clip(record, data=[])


def test_one_image_is_a_clip_of_one_frame(folder):
    with open_clip(clip(folder / "img_00007.png")) as reader:
        assert (reader.num_frames, reader.fps) == (1, None)
        assert values(reader.read([0, 0])) == [7, 7]
    assert image_names(clip(folder / "x.mp4")) == []


def test_bad_images(tmp_path, folder):
    def reason(record):
        with pytest.raises(VideoError) as info, open_clip(record) as reader:
            reader.read(range(reader.num_frames))
        assert not isinstance(check_clip(record, every_frame=True), tuple)
        return str(info.value)

    record = clip(folder, num_frames=13, frame_pattern="img_{:05}.png")
    assert "img_00013.png: expected an undamaged JPEG or PNG file, found No such" in reason(record)
    half = (folder / "img_00003.png").read_bytes()[:45]
    (folder / "img_00003.png").write_bytes(half)
    assert "img_00003.png: expected an undamaged JPEG or PNG file" in reason(clip(folder))
    Image.fromarray(gray(3, height=5)).save(folder / "img_00003.png")
    assert "an image of 6x4, as the first of its folder, found 6x5" in reason(clip(folder))
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "img_00003.png")
    assert "8 bits per channel, found mode I;16" in reason(clip(folder))
    (folder / "img_00003.png").write_bytes(b"")
    assert "undamaged JPEG or PNG" in reason(clip(folder))
    (folder / "img_00003.png").unlink()
    os.mkfifo(folder / "img_00003.png")
    assert "expected an image file, found a folder, device or pipe" in reason(clip(folder))
    (folder / "img_00003.png").unlink()
    Image.new("P", (6, 4)).save(folder / "img_00003.png", format="GIF")
    assert "undamaged JPEG or PNG" in reason(clip(folder))
    (tmp_path / "empty").mkdir()
    assert "expected a folder of images (.jpg, .jpeg, .png), found none" in reason(
        clip(tmp_path / "empty")
    )
    assert "found 1000000000" in reason(clip(folder, num_frames=10**9))


def test_images_are_upright_and_rgb(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[0, 0] = (250, 10, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(str(tmp_path / "turned.png")), np.rot90(picture, -1))
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(str(tmp_path / "alpha.png")), picture)
    Image.fromarray(picture[..., 0]).save(tmp_path / "gray.png")
    assert read_image(str(tmp_path / "gray.png"))[0, 0].tolist() == [250, 250, 250]


def test_check_tells_what_was_found(h264, folder, tmp_path):
    assert check_clip(clip(h264)) == (30, pytest.approx(10))
    assert check_clip(clip(h264), every_frame=True) == (30, pytest.approx(10))
    assert check_clip(clip(folder)) == (12, None)
    with wave.open(str(tmp_path / "silence.wav"), "wb") as sound:
        sound.setparams((1, 2, 8_000, 0, "NONE", ""))
        sound.writeframes(bytes(2 * 8_000))
    assert check_clip(clip(tmp_path / "silence.wav")) == (16_000, 16_000)
    (tmp_path / "empty.mp4").touch()
    error = check_clip(clip(tmp_path / "empty.mp4"))
    assert isinstance(error, VideoError)
    assert "found an empty file" in error.reason


def test_only_every_frame_finds_damage_in_between(tmp_path, h264, overwritten):
    def second_group(packets):
        # Of four groups of pictures; three frames lie in the others.
        second, third = [i for i, p in enumerate(packets) if p.is_keyframe][1:3]
        return packets[second:third]

    path = tmp_path / "damaged.mp4"
    path.write_bytes(overwritten(h264, second_group))
    assert isinstance(check_clip(clip(path, start=2.0)), tuple)
    error = check_clip(clip(path), every_frame=True)
    assert isinstance(error, VideoError)
    assert "damaged" in error.reason
