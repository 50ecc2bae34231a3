"""What headers claim about sizes, and that no cut file passes for a whole one."""

import io

import pytest

from internvideo_jax.data.decode.container_size import announced_size
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


@pytest.mark.parametrize("suffix", [".mp4", ".faststart.mp4", ".fragments.mp4", ".mkv", ".avi"])
def test_no_cut_file_passes_for_whole(tmp_path, render, suffix):
    flags = {
        ".faststart.mp4": {"movflags": "+faststart"},
        ".fragments.mp4": {"movflags": "+frag_keyframe+empty_moov"},
    }
    path = render(
        tmp_path / f"whole{suffix}",
        "mpeg4",
        options={"g": "8"},
        container_options=flags.get(suffix),
    )
    data = path.read_bytes()
    assert index_video(path).num_frames == 30
    for size in range(1, len(data) - 8, len(data) // 60):
        path.write_bytes(data[:size])
        with pytest.raises(VideoError):
            index_video(path)
