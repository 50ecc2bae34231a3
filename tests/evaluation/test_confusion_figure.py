"""The picture of confusions."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from internvideo_jax.evaluation.figures.confusion import confusion_figure


def test_rows_are_shares_of_the_true_class():
    counts = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]])
    figure = confusion_figure(counts, ["a", "b", "c"])
    axes = figure.axes[0]
    expected = [[0.75, 0.25, 0], [0, 0, 0], [0.5, 0, 0.5]]
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "1", "3"]


@pytest.mark.parametrize(("size", "letters"), [(2, 60), (8, 13), (20, 1), (20, 60), (40, 60)])
def test_nothing_is_cut_off(size, letters):
    names = [f"{'turning' * letters}"[:letters] for _ in range(size)]
    figure = confusion_figure(np.eye(size, dtype=int), names)
    FigureCanvasAgg(figure).draw()
    shown = [axes.get_tightbbox() for axes in figure.axes]
    # A pixel for rounding.
    assert min(box.x0 for box in shown) > -1
    assert min(box.y0 for box in shown) > -1
    assert max(box.x1 for box in shown) < figure.bbox.width + 1
    assert max(box.y1 for box in shown) < figure.bbox.height + 1
    assert figure.axes[0].get_window_extent().width > 100
    # There is no room for numbers in many cells.
    assert bool(figure.axes[0].texts) == (size <= 20)


def test_long_names_are_cut():
    axes = confusion_figure(np.eye(2, dtype=int), ["a" * 40, "b" * 41]).axes[0]
    assert [x.get_text() for x in axes.get_yticklabels()] == ["a" * 40, "b" * 39 + "…"]


@pytest.mark.parametrize(("size", "names"), [(101, 101), (3, 2)])
def test_what_cannot_be_drawn_is_refused(size, names):
    with pytest.raises(ValueError, match=f"found {size} and {names}"):
        confusion_figure(np.zeros((size, size), int), [str(i) for i in range(names)])
