import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.objectives.distillation import alignment_loss, distillation_loss


def unit(seed: int, *shape: int) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def test_alignment_is_the_squared_distance_of_unit_vectors() -> None:
    a, b = unit(0, 2, 3, 5, 8), unit(1, 2, 3, 5, 8)
    np.testing.assert_allclose(alignment_loss(a, b), jnp.mean(jnp.sum((a - b) ** 2, -1)), rtol=1e-6)
    np.testing.assert_allclose(alignment_loss(a, a), 0, atol=1e-6)
    np.testing.assert_allclose(alignment_loss(a, -a), 4, rtol=1e-6)


def test_alignment_is_float32_for_half_precision_students() -> None:
    a, b = unit(0, 4, 64).astype(jnp.bfloat16), unit(1, 4, 64)
    loss = alignment_loss(a, b)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, alignment_loss(a.astype(jnp.float32), b), rtol=1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    a, b = unit(0, 4, 8), unit(1, 4, 8)
    to_student, to_teacher = jax.grad(alignment_loss, argnums=(0, 1))(a, b)
    np.testing.assert_allclose(to_student, -2 * b / 4, rtol=1e-6)
    assert not to_teacher.any()


def test_alignment_refuses_targets_that_were_not_gathered() -> None:
    with pytest.raises(ValueError, match=r"found \(1, 2, 3, 8\) and \(1, 2, 5, 8\)"):
        alignment_loss(unit(0, 1, 2, 3, 8), unit(1, 1, 2, 5, 8))


def test_distillation_loss_weighs_the_terms() -> None:
    names = ("clip_middle", "clip_final", "mae")
    student = {name: unit(i, 2, 3, 8) for i, name in enumerate(names)}
    targets = {name: unit(i + 5, 2, 3, 8) for i, name in enumerate(names)}
    ratios = dict(zip(names, (1.0, 0.5, 2.0), strict=True))
    total, terms = distillation_loss(student, targets, ratios)
    assert set(terms) == set(names)
    for name in names:
        np.testing.assert_allclose(terms[name], alignment_loss(student[name], targets[name]))
    expected = sum(ratios[name] * terms[name] for name in names)
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_terms_without_weight_are_not_computed() -> None:
    student = {"clip_middle": unit(0, 2, 8), "clip_final": unit(1, 2, 3)}
    targets = {"clip_middle": unit(2, 2, 8)}
    total, terms = distillation_loss(student, targets, {"clip_middle": 1, "clip_final": 0})
    assert list(terms) == ["clip_middle"]
    np.testing.assert_allclose(total, terms["clip_middle"])


@pytest.mark.parametrize("ratios", [{"clip_middle": 1, "mae": 1}, {}, {"clip_middle": 0}])
def test_missing_terms_are_named(ratios) -> None:
    student = {"clip_middle": unit(0, 2, 8)}
    with pytest.raises(ValueError, match="mae" if ratios.get("mae") else "at least one term"):
        distillation_loss(student, dict(student), ratios)
