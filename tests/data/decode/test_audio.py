"""Waveforms of audio and video files."""

import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from internvideo_jax.data.decode.audio import read_audio
from internvideo_jax.data.decode.video import Limits, VideoError
from tests.data.videos import index_video

FREQUENCY, ONSET, AMPLITUDE = 440.0, 0.25, 0.5

# name: (encoder, sample rate, layout, whether with pictures, error of the waveform)
FILES = {
    "aac.mp4": ("aac", 16_000, "mono", True, 0.02),
    "aac.mkv": ("aac", 44_100, "stereo", True, 0.02),
    "aac.ts": ("aac", 16_000, "stereo", False, 0.02),
    "pcm.mp4": ("pcm_s16le", 16_000, "mono", True, 1e-4),
    "pcm.avi": ("pcm_s16le", 22_050, "stereo", True, 2e-4),
    "flac.flac": ("flac", 48_000, "stereo", False, 2e-4),
    "opus.webm": ("libopus", 48_000, "stereo", False, 0.02),
    "mp3.mp3": ("libmp3lame", 44_100, "mono", False, 0.03),
}


def tone(seconds: float, rate: int) -> np.ndarray:
    """Silence, then from `ONSET` on a tone that swells for 50 ms."""
    times = np.arange(round(seconds * rate)) / rate
    swell = np.clip((times - ONSET) / 0.05, 0, 1)
    return AMPLITUDE * swell * np.sin(2 * np.pi * FREQUENCY * times)


def encode(
    path: Path,
    codec: str,
    rate: int = 16_000,
    layout: str = "mono",
    *,
    pictures: bool = False,
    seconds: float = 1.0,
    channels: np.ndarray | None = None,
    format_: str = "s16",
) -> Path:
    """Writes `channels` [C, S], or the tone in each of the layout's channels."""
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV was built without {codec}")
    if channels is None:
        channels = np.stack([tone(seconds, rate)] * av.AudioLayout(layout).nb_channels)
    dtype = {"s16": np.int16, "s32": np.int32, "flt": np.float32, "u8": np.uint8}[format_]
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        half = (int(info.max) - int(info.min)) // 2
        middle = 128 if format_ == "u8" else 0
        packed = np.clip(channels.T * half + middle, info.min, info.max)
    else:
        packed = channels.T
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(packed).reshape(1, -1).astype(dtype), format=format_, layout=layout
    )
    frame.sample_rate, frame.pts = rate, 0
    with av.open(path, "w") as container:
        if pictures:
            video = container.add_stream("mpeg4", rate=25)
            video.width, video.height = 32, 32
        audio = container.add_stream(codec, rate=rate, layout=layout)
        context = audio.codec_context
        if pictures:
            for number in range(round(25 * seconds)):
                picture = av.VideoFrame(32, 32, "yuv420p")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                container.mux(video.encode(picture))
            container.mux(video.encode())
        context.open(strict=False)
        resampler = av.AudioResampler(
            context.format, context.layout, rate, frame_size=context.frame_size or 1024
        )
        for piece in resampler.resample(frame) + resampler.resample(None):
            container.mux(audio.encode(piece))
        container.mux(audio.encode())
    return path


def shifted(source: Path, target: Path, seconds: float, after: float = -1e9) -> Path:
    """Copies packets with the sound's timestamps shifted where they are past `after`."""
    options = {"avoid_negative_ts": "disabled"}
    with av.open(source) as reader, av.open(target, "w", options=options) as writer:
        copies = {s.index: writer.add_stream_from_template(s) for s in reader.streams}
        for packet in reader.demux():
            if not packet.size:
                continue
            if packet.stream.type == "audio" and packet.pts * packet.time_base >= after:
                ticks = round(seconds / packet.time_base)
                packet.pts += ticks
                packet.dts += ticks
            packet.stream = copies[packet.stream.index]
            writer.mux(packet)
    return target


def wav_of_rate(rate: int) -> bytes:
    """1,000 samples, of a rate that the header states."""
    data = bytes(2_000)
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate % 2**32, 2, 16)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize("name", FILES)
def test_every_container_gives_the_same_waveform_at_the_same_place(tmp_path, name):
    codec, rate, layout, pictures, error = FILES[name]
    path = encode(tmp_path / name, codec, rate, layout, pictures=pictures)
    samples = read_audio(path)
    assert (samples.dtype, samples.ndim) == (np.float32, 1)
    assert np.abs(samples).max() <= 1
    expected = tone(1.0, 16_000)
    if name == "aac.ts":
        # No edit list tells the encoder's 1,024 priming samples from sound.
        samples = samples[1024:]
    # Encoders fill their last frame up.
    assert 16_000 <= len(samples) < 17_500
    # Codecs blur the first and the last moments; half a sample of lag would be an error of 0.04.
    np.testing.assert_allclose(samples[800:15_200], expected[800:15_200], atol=error)


def test_memory_and_file_give_the_same(tmp_path):
    path = encode(tmp_path / "a.mp4", "aac", pictures=True)
    assert np.array_equal(read_audio("gone.mp4", data=path.read_bytes()), read_audio(path))
    with pytest.raises(VideoError, match=r"gone\.mp4: .* found no bytes"):
        read_audio("gone.mp4", data=b"")


@pytest.mark.parametrize("wanted", [8_000, 16_000, 22_050, 48_000])
def test_the_rate_can_be_chosen(tmp_path, wanted):
    path = encode(tmp_path / "a.wav", "pcm_s16le", 44_100)
    samples = read_audio(path, wanted)
    assert len(samples) == wanted
    middle = slice(wanted // 2, wanted * 9 // 10)
    np.testing.assert_allclose(samples[middle], tone(1.0, wanted)[middle], atol=1e-3)


@pytest.mark.parametrize(
    ("codec", "format_", "step"),
    [("pcm_u8", "u8", 2**-7), ("pcm_s32le", "s32", 2**-30), ("pcm_f32le", "flt", 1e-7)],
)
def test_formats_are_scaled_to_one(tmp_path, codec, format_, step):
    ramp = np.linspace(-1, 1, 1600)[None]
    path = encode(tmp_path / "a.wav", codec, format_=format_, channels=ramp)
    # float32 itself has 2**-24.
    np.testing.assert_allclose(read_audio(path), ramp[0], atol=max(2 * step, 1e-6))


def test_channels_are_averaged(tmp_path):
    left, right = tone(1.0, 16_000), np.full(16_000, 0.25)
    path = encode(
        tmp_path / "a.wav", "pcm_s16le", layout="stereo", channels=np.stack([left, right])
    )
    np.testing.assert_allclose(read_audio(path), (left + right) / 2, atol=1e-4)


def test_what_is_out_of_range_is_clipped(tmp_path):
    wild = np.array([[0.5, 3.0, -2.0, np.nan, np.inf, -np.inf, 0.25]])
    path = encode(tmp_path / "a.wav", "pcm_f32le", format_="flt", channels=wild)
    np.testing.assert_array_equal(read_audio(path), [0.5, 1, -1, 0, 1, -1, 0.25])


def test_samples_before_zero_are_dropped(tmp_path):
    # Matroska keeps timestamps below zero, and PyAV returns those samples.
    source = encode(tmp_path / "a.avi", "pcm_s16le", pictures=True)
    path = shifted(source, tmp_path / "b.mkv", -0.1)
    with av.open(path) as container:
        assert next(container.decode(audio=0)).pts < 0
    samples = read_audio(path)
    assert len(samples) == 14_400
    np.testing.assert_allclose(samples, tone(1.0, 16_000)[1600:], atol=1e-4)


def test_sound_that_begins_late_follows_silence(tmp_path):
    source = encode(tmp_path / "a.avi", "pcm_s16le", pictures=True)
    path = shifted(source, tmp_path / "b.mkv", 0.5)
    assert index_video(path).timestamps[0] == 0
    samples = read_audio(path)
    assert len(samples) == 24_000
    assert not samples[:8000].any()
    np.testing.assert_allclose(samples[8000:], tone(1.0, 16_000), atol=1e-4)


def test_gaps_are_silent(tmp_path):
    source = encode(tmp_path / "a.mkv", "pcm_s16le")
    path = shifted(source, tmp_path / "b.mkv", 0.5, after=0.5)
    samples, expected = read_audio(path), tone(1.0, 16_000)
    assert len(samples) == 24_000
    (silent,) = np.nonzero(np.convolve(samples[6000:] == 0, np.ones(1000), "valid") == 1000)
    start = 6000 + silent[0]
    np.testing.assert_allclose(samples[:start], expected[:start], atol=1e-4)
    np.testing.assert_allclose(samples[start + 8000 :], expected[start:], atol=1e-4)


def test_damaged_packets_cost_their_own_sound(tmp_path, overwritten):
    path = encode(tmp_path / "a.mp4", "aac", pictures=True)
    whole = read_audio(path)
    samples = read_audio(path, data=overwritten(path, lambda p: p[8:10], "audio", b"\xff"))
    assert len(samples) == len(whole)
    # Frames of 1,024 samples overlap; one before the first is priming.
    np.testing.assert_allclose(samples[: 6 * 1024], whole[: 6 * 1024], atol=1e-3)
    np.testing.assert_allclose(samples[11 * 1024 :], whole[11 * 1024 :], atol=1e-3)


@pytest.mark.parametrize(
    ("rate", "accepted"),
    [
        (1, False),
        (999, False),
        (1_000, True),
        (768_000, True),
        (768_001, False),
        (2**31 - 1, False),
    ],
)
def test_rates_that_no_recording_has_are_refused(rate, accepted):
    data = wav_of_rate(rate)
    if accepted:
        assert len(read_audio("a.wav", data=data)) == -(-1_000 * 16_000 // rate)
    else:
        with pytest.raises(VideoError, match=rf"768,000 samples per second, found {rate:,}"):
            read_audio("a.wav", data=data)


@pytest.mark.parametrize("rate", [0, 2**31, 2**32 - 1])
def test_rates_that_are_no_rates_are_refused(rate):
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"^a\.wav: "):
        read_audio("a.wav", data=wav_of_rate(rate))
    assert time.monotonic() - started < 1


def test_limits(tmp_path):
    path = encode(tmp_path / "a.wav", "pcm_s16le")
    with pytest.raises(VideoError, match=r"at most 0\.9375 s of sound, found more"):
        read_audio(path, limits=Limits(max_samples=15_000))
    with pytest.raises(VideoError, match=r"at most 0 s.*Limits\.deadline"):
        read_audio(path, limits=Limits(deadline=0))


def test_a_gap_beyond_the_limits_is_never_filled(tmp_path):
    source = encode(tmp_path / "a.mkv", "pcm_s16le")
    path = shifted(source, tmp_path / "b.mkv", 1e6, after=0.5)
    with pytest.raises(VideoError, match=r"at most 16777\.2 s of sound"):
        read_audio(path)


def test_the_default_sound_is_read(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(path, "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for level, stream in enumerate(streams, 1):
            samples = np.full((1, 8_000), 1_000 * level, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    np.testing.assert_allclose(read_audio(path), 2_000 / 2**15, atol=1e-4)


def test_files_without_sound(tmp_path, h264):
    with pytest.raises(VideoError, match=r"an audio stream, found no audio stream \(only video\)"):
        read_audio(h264)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="found an empty file"):
        read_audio(tmp_path / "empty.mp4")
    with pytest.raises(VideoError, match="No such file"):
        read_audio(tmp_path / "none.mp4")
    (tmp_path / "text.mp3").write_text("no sound " * 1000)
    with pytest.raises(VideoError, match="expected a video file"):
        read_audio(tmp_path / "text.mp3")
    with pytest.raises(ValueError, match="at least 1 sample per second"):
        read_audio(h264, 0)


def test_sound_that_cannot_be_decoded(tmp_path, overwritten):
    path = encode(tmp_path / "a.mp4", "aac", pictures=True)
    data = overwritten(path, list, "audio", b"\xff")
    with pytest.raises(VideoError, match="an audio stream that cannot be decoded"):
        read_audio(path, data=data)
