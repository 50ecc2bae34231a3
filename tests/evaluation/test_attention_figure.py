import numpy as np
import pytest

from internvideo_jax.evaluation.figures.attention import AttendedClip, attention_figure


def make(frames=4, steps=4):
    return AttendedClip(
        "clip",
        np.full((frames, 8, 8, 3), 100, np.uint8),
        np.arange(frames) / 2,
        np.full((steps, 2, 2), 1 / (4 * steps)),
    )


def test_sheet_has_frames_above_their_attention(tmp_path):
    figure = attention_figure([make(), make(4, 2)])
    assert len(figure.axes) == 2 * 2 * 4 + 1
    assert [a.get_xlabel() for a in figure.axes[4:6]] == ["0.00 s", "0.50 s"]
    frame, heat = (figure.axes[i].images[0].get_array() for i in (0, 4))
    assert frame.shape == (8, 8, 3)
    assert np.allclose(heat, 1)
    figure.savefig(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_bad_clips_are_named():
    with pytest.raises(ValueError, match="at least one clip"):
        attention_figure([])
    with pytest.raises(ValueError, match="3 temporal steps .* found 4 frames for 'clip'"):
        attention_figure([make(4, 3)])
