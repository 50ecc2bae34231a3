"""Logistic regression on frozen features: how well a linear map reads an attribute off them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Weight of the squared weights beside the mean cross-entropy, for standardised features.
_L2 = 0.01
_ITERATIONS = 100


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Probes of one attribute on one encoder.

    Attributes:
      accuracies: percentage of the test clips that each probe gets right.
      predictions: its classes for them, `[probes, N]`.
    """

    accuracies: tuple[float, ...]
    predictions: np.ndarray

    @property
    def mean(self) -> float:
        """Mean accuracy over the probes."""
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracy between draws of labels."""
        return float(np.std(self.accuracies))

    def as_json(self) -> dict[str, Any]:
        """The accuracies with their mean and deviation."""
        return {"mean": self.mean, "deviation": self.deviation, "accuracies": self.accuracies}


def draw_labels(count: int, labels: int, draws: int, seed: int) -> np.ndarray:
    """Which of `count` clips each probe learns from: `[draws, labels]`, none twice.

    Raises:
      ValueError: more labels than clips.
    """
    if labels > count:
        raise ValueError(f"expected at least {labels} clips to draw labels from, found {count}")
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(count)[:labels] for _ in range(draws)])


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    drawn: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> ProbeResult:
    """Fits a probe to each draw of labels and judges it on the test clips.

    Args:
      features: `[M, F]`.
      labels: classes `[M]`, numbered from 0.
      drawn: rows that each probe learns from, `[probes, labels]`.
      test_features: `[N, F]`.
      test_labels: `[N]`.
    """
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    predictions = np.stack(
        [
            _fit_and_predict(features[rows], labels[rows], test_features, num_classes)
            for rows in drawn
        ]
    )
    hits = predictions == test_labels
    return ProbeResult(tuple(float(x) for x in 100 * hits.mean(1)), predictions)


@functools.partial(jax.jit, static_argnums=3)
def _fit_and_predict(
    features: jax.Array, labels: jax.Array, test_features: jax.Array, num_classes: int
) -> jax.Array:
    mean, std = features.mean(0), features.std(0) + 1e-6
    features, test_features = ((x - mean) / std for x in (features, test_features))

    def loss(weights: dict[str, jax.Array]) -> jax.Array:
        logits = features @ weights["kernel"] + weights["bias"]
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy.mean() + _L2 / 2 * jnp.sum(weights["kernel"] ** 2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(weights, updates), state), None

    weights = {
        "kernel": jnp.zeros((features.shape[1], num_classes)),
        "bias": jnp.zeros(num_classes),
    }
    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=_ITERATIONS)
    return jnp.argmax(test_features @ weights["kernel"] + weights["bias"], axis=-1)
