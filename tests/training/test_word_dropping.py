import jax.numpy as jnp
import numpy as np

from internvideo_jax.training.word_dropping import without_words

# Begin 8, end 9; 0 is also the id of a word.
TEXTS = jnp.array([[8, 1, 2, 3, 9, 0], [8, 0, 5, 9, 0, 0], [8, 4, 9, 0, 0, 0], [8, 9, 0, 0, 0, 0]])


def test_marked_words_are_left_out_and_the_others_move_up():
    is_dropped = jnp.zeros(TEXTS.shape, bool).at[0, 2].set(True).at[1, 2].set(True)
    found = np.asarray(without_words(TEXTS, is_dropped))
    assert found.tolist() == [
        *([8, 1, 3, 9, 0, 0], [8, 0, 9, 0, 0, 0], [8, 4, 9, 0, 0, 0], [8, 9, 0, 0, 0, 0]),
    ]


def test_begin_and_end_stay_and_no_text_is_emptied():
    found = without_words(TEXTS, jnp.ones(TEXTS.shape, bool))
    np.testing.assert_array_equal(found, TEXTS)
    one_left = jnp.ones(TEXTS.shape, bool).at[0, 3].set(False)
    assert without_words(TEXTS, one_left)[0].tolist() == [8, 3, 9, 0, 0, 0]
