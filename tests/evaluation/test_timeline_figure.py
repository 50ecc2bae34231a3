"""The timeline of a long video."""

import numpy as np
import pytest

from internvideo_jax.evaluation.figures.files import save_figure
from internvideo_jax.evaluation.figures.timeline import (
    MAX_CLASSES,
    chosen_classes,
    format_time,
    timeline_figure,
)


def windows(truth, num_classes, length=2.0, stride=1.0):
    """Windows, each of which is sure of a class."""
    starts = stride * np.arange(len(truth))
    times = np.stack([starts, starts + length], axis=1)
    probabilities = np.full((len(truth), num_classes), 0.1 / num_classes, np.float32)
    probabilities[np.arange(len(truth)), truth] += 0.9
    return times, probabilities


def test_classes_come_in_the_order_in_which_they_lead():
    times, probabilities = windows([5, 5, 2, 5, 0], 6)
    probabilities[0, 3] = 0.5
    chosen, num_leading = chosen_classes(times, probabilities)
    # Three lead; the fourth is the most probable of the others.
    assert chosen.tolist() == [5, 2, 0, 3]
    assert num_leading == 3


def test_of_many_classes_those_are_shown_that_lead_the_longest():
    truth = [i for i in range(20) for _ in range(1 + i)]
    chosen, num_leading = chosen_classes(*windows(truth, 30))
    assert chosen.tolist() == list(range(20 - MAX_CLASSES, 20))
    assert num_leading == 20
    figure = timeline_figure(*windows(truth, 30), list(map(str, range(30))), "match.mp4")
    assert figure.axes[0].get_title(loc="left") == "match.mp4 (12 of the 20 classes that lead)"


def test_the_picture_has_names_times_and_gaps(tmp_path):
    times, probabilities = windows([0, 0, 1, 1, 1, 2], 3)
    probabilities[3] = np.nan
    names = ["going left", r"costs $\frac", "x" * 60]
    figure = timeline_figure(times, probabilities, names, r"a$\b.mp4")
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["going left", r"costs $\frac", f"{'x' * 39}…"]
    (mesh,) = (c for c in axes.collections if hasattr(c, "get_coordinates"))
    # Overlapping windows give way to each other half-way.
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [0, 1.5, 2.5, 3.5, 4.5, 5.5, 7])
    assert mesh.get_array().mask[:, 3].all()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["best class", "unreadable"]
    for suffix in ("png", "pdf", "svg", "jpg"):
        save_figure(figure, tmp_path / f"timeline.{suffix}")
        assert (tmp_path / f"timeline.{suffix}").stat().st_size > 2000


def test_a_single_window_is_a_picture(tmp_path):
    times, probabilities = windows([1], 2)
    save_figure(timeline_figure(times, probabilities, ["a", "b"], "x"), tmp_path / "one.png")
    assert (tmp_path / "one.png").is_file()


def test_characters_that_the_font_lacks_are_said_once(tmp_path, capsys):
    times, probabilities = windows([1], 2)
    figure = timeline_figure(times, probabilities, ["弾く楽器", "b"], "x")
    save_figure(figure, tmp_path / "one.png")
    assert capsys.readouterr().err.count("the font lacks characters") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (2.5, "0:02.5"), (59.96, "1:00"), (75, "1:15"), (3600, "1:00:00"),
     (7322.14, "2:02:02.1")],
)  # fmt: skip
def test_times(seconds, text):
    assert format_time(seconds) == text


def test_times_below_each_other():
    assert [format_time(s, with_tenths=True) for s in (2, 2.5)] == ["0:02.0", "0:02.5"]
