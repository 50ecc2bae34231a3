"""What headers claim about sizes, and that no cut file passes for a whole one."""

import io

import av
import numpy as np
import pytest

from internvideo_jax.data.decode.audio import read_audio
from internvideo_jax.data.decode.container_size import announced_size, truncation
from internvideo_jax.data.decode.video import VideoError
from tests.data.videos import index_video


def claimed(data: bytes) -> int | None:
    return announced_size(io.BytesIO(data), len(data))


def box(kind: bytes, size: int, body: bytes = b"") -> bytes:
    return size.to_bytes(4, "big") + kind + body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"GIF89a" + bytes(100), None),
        (b"\xff\xfb\x90\x64" + bytes(32) + b"Xing\0\0\0\x03" + bytes(4) + b"\0\0\x12\x34", 0x1234),
        (b"ID3\x04\0\0\0\0\0\2ab\xff\xfb\0\0Info\0\0\0\2\0\0\0\x63", 12 + 99),
        (b"ID3\x04\0\0\0\0\0\2ab\xff\xfb\0\0Info\0\0\0\1\0\0\0\x63", None),
        (b"ID3\x04", None),
        (b"FLV\1\1\0\0\0\x09" + bytes(20) + b"\0\x08filesize\0\x40\x59" + bytes(6), 100),
        (b"FLV\1\1\0\0\0\x09" + bytes(20) + b"\0\x08filesize\0\x7f\xf8" + bytes(6), None),
        (b"RIFF\x10\x27\x00\x00AVI ", 10000),
        (b"RIFF\xff\xff\xff\xffAVI ", None),
        (b"RIFF\x00\x00\x00\x00AVI ", None),
        (box(b"ftyp", 16, bytes(8)) + box(b"mdat", 1000), 1016),
        # 64-bit size; 0: to the end; padding after the last box; a box header cut in two.
        (box(b"ftyp", 8) + box(b"mdat", 1, (2**33).to_bytes(8, "big")), 2**33 + 8),
        (box(b"ftyp", 8) + box(b"mdat", 0), None),
        (box(b"ftyp", 8) + bytes(100), None),
        (box(b"ftyp", 8) + box(b"\xff\x00ab", 99), None),
        (box(b"ftyp", 8) + b"\0\0\0", 8),
        # EBML header of 3 bytes, then a segment of 0x1234 bytes; the same of unknown size.
        (b"\x1a\x45\xdf\xa3\x83abc\x18\x53\x80\x67\x52\x34", 8 + 4 + 2 + 0x1234),
        (b"\x1a\x45\xdf\xa3\x83abc\x18\x53\x80\x67\x01" + b"\xff" * 7, None),
        (b"\x1a\x45\xdf\xa3\x83abc\x18\x53\x80\x67", None),
        (b"\x1a\x45\xdf\xa3", None),
    ],
)
def test_announced_size(data, expected):
    assert claimed(data) == expected


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
def test_whole_files_have_their_announced_size(tmp_path, render, suffix):
    codec = "libvpx" if suffix == ".webm" else "mpeg4"
    data = render(tmp_path / f"whole{suffix}", codec).read_bytes()
    # RIFF does not count its own header.
    assert claimed(data) == len(data) - 8 * (suffix == ".avi")


# Suffix: codec and how many bytes may be missing at the end, which players do not miss either.
CODECS = {
    ".mp4": ("mpeg4", 8),
    ".faststart.mp4": ("mpeg4", 8),
    ".fragments.mp4": ("mpeg4", 8),
    ".mkv": ("mpeg4", 8),
    ".avi": ("mpeg4", 8),
    ".gif": ("gif", 0),
    ".flv": ("flv", 0),
    ".live.flv": ("flv", 0),
    ".wmv": ("wmv2", 0),
}


@pytest.mark.parametrize("suffix", CODECS)
def test_no_cut_file_passes_for_whole(tmp_path, render, suffix):
    flags = {
        ".faststart.mp4": {"movflags": "+faststart"},
        ".fragments.mp4": {"movflags": "+frag_keyframe+empty_moov"},
        ".live.flv": {"flvflags": "no_metadata"},
    }
    codec, spare = CODECS[suffix]
    path = render(
        tmp_path / f"whole{suffix}",
        codec,
        options={"g": "8"},
        container_options=flags.get(suffix),
        pix_fmt="rgb8" if codec == "gif" else "yuv420p",
    )
    data = path.read_bytes()
    assert index_video(path).num_frames == 30
    for size in (*range(1, len(data) - spare, len(data) // 60), len(data) - spare - 1):
        path.write_bytes(data[:size])
        with pytest.raises(VideoError):
            index_video(path)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".wav", "pcm_s16le"),
        (".mp3", "libmp3lame"),
        (".m4a", "aac"),
        (".ogg", "vorbis"),
        (".opus", "libopus"),
        (".flac", "flac"),
    ],
)
def test_no_cut_sound_passes_for_whole(tmp_path, suffix, codec):
    path = tmp_path / f"whole{suffix}"
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout="stereo", options={"strict": "-2"})
        noise = np.random.default_rng(0).normal(0, 0.1, (2, 48_000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert len(read_audio(path)) == pytest.approx(16_000, abs=1000)
    for size in range(1, len(data) - 100, len(data) // 40):
        path.write_bytes(data[:size])
        with pytest.raises(VideoError):
            read_audio(path)


def test_long_walks_end(monkeypatch):
    # Chunks of one byte each; the end is missing.
    gif = b"GIF89a" + bytes(7) + b"!\xff" + b"\1a" * 2_000
    assert truncation(io.BytesIO(gif), len(gif)) is not None
    monkeypatch.setattr("internvideo_jax.data.decode.container_size._MAX_CHUNKS", 1_000)
    assert truncation(io.BytesIO(gif), len(gif)) is None
