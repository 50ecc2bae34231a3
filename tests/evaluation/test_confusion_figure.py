"""The picture of confusions."""

import numpy as np
import pytest

from internvideo_jax.evaluation.confusion_figure import confusion_figure


def test_rows_are_shares_of_the_true_class():
    counts = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]])
    figure = confusion_figure(counts, ["a", "b", "c"])
    axes = figure.axes[0]
    expected = [[0.75, 0.25, 0], [0, 0, 0], [0.5, 0, 0.5]]
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "1", "3"]


def test_many_classes_have_no_numbers():
    axes = confusion_figure(np.eye(40, dtype=int), [str(i) for i in range(40)]).axes[0]
    assert not axes.texts


@pytest.mark.parametrize(("size", "names"), [(101, 101), (3, 2)])
def test_what_cannot_be_drawn_is_refused(size, names):
    with pytest.raises(ValueError, match=f"found {size} and {names}"):
        confusion_figure(np.zeros((size, size), int), [str(i) for i in range(names)])
