import contextlib
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.training.batches import abstract_batch
from internvideo_jax.training.optimizer import PartConfig
from internvideo_jax.training.state import abstract_state, create_state, load_frozen
from internvideo_jax.training.step import make_train_step
from tests.training import toy_stage as toy


class Run:
    """A stage's step with its state, for a few steps by hand."""

    def __init__(self, stage, config, devices=None):
        self.stage, self.config = stage, config
        devices = devices or jax.devices()[:1]
        self.mesh = make_mesh(config.mesh, devices)
        with self.context():
            place = (self.mesh, DEFAULT_RULES)
            self.target, _ = abstract_state(stage, config, *place)
            self.state, self.fixed = create_state(stage, config, *place)
            self.frozen = load_frozen(stage, *place)
            schedule = config.schedule(config.lengths())
            self.step = make_train_step(stage, config, schedule, self.target, *place)

    def context(self):
        stack = contextlib.ExitStack()
        stack.enter_context(jax.set_mesh(self.mesh))
        stack.enter_context(nn.logical_axis_rules(DEFAULT_RULES))
        return stack

    def __call__(self, host_batch):
        inputs = abstract_batch(self.stage, self.config.rows, self.mesh, DEFAULT_RULES)
        batch = {name: jax.device_put(host_batch[name], x.sharding) for name, x in inputs.items()}
        with self.context():
            self.state, metrics = self.step(self.state, self.fixed, self.frozen, batch)
        return jax.device_get(metrics)

    def params(self):
        return host(self.state.variables(self.fixed)["params"])


def run(stage, config, host_batches):
    made = Run(stage, config)
    return made, [made(batch) for _, batch in zip(range(config.steps), host_batches, strict=False)]


def host(tree):
    """A copy that donation does not touch."""
    return jax.tree.map(np.array, tree)


def test_a_step_is_adamw_on_the_mean_gradient():
    """Against optax used plainly: rate in the optimizer, one gradient of the whole loss."""
    config = toy.make_config(steps=3, ema_decay=0.9)
    stage = toy.ToyStage()
    schedule = config.schedule(config.lengths())
    made = Run(stage, config)
    variables = host(made.state.variables(made.fixed))
    params, extra = variables["params"], {"batch_stats": variables["batch_stats"]}
    ema = params
    optimizer = optax.chain(
        optax.clip_by_global_norm(3.0),
        optax.adamw(
            schedule, weight_decay=0.05, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
        ),
    )
    data = toy.batches(config)(0)
    fixed = {"fixed": params["fixed"]}
    trained = {k: v for k, v in params.items() if k != "fixed"}
    opt_state, update = optimizer.init(trained), jax.jit(optimizer.update)

    @jax.jit
    def gradients_of(trained, extra, batch, key):
        targets_key, loss_key = jax.random.split(key)
        targets = stage.targets(made.frozen, batch, targets_key)

        def loss_fn(trained):
            return stage.loss({**trained, **fixed}, extra, batch, targets, loss_key)

        return jax.value_and_grad(loss_fn, has_aux=True)(trained)

    for step in range(3):
        batch = {"x": next(data)["x"]}
        metrics = made(batch)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), step), 0)
        (loss, (_, extra)), gradients = gradients_of(trained, extra, batch, key)
        updates, opt_state = update(gradients, opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, {**trained, **fixed})
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradients), rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate"], schedule(step), rtol=1e-6)
    # Adam divides small gradients by their own size: rounding shows.

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)

    jax.tree.map(close, made.params(), {**trained, **fixed})
    jax.tree.map(close, made.state.extra, extra)
    jax.tree.map(close, made.state.averaged_variables(made.fixed)["params"], ema)
    assert int(made.state.step) == 3


def test_micro_batches_give_the_update_of_the_whole_batch():
    whole, parts = (
        run(toy.ToyStage(draws=False), config, toy.batches(config)(0))
        for config in (toy.make_config(steps=4), toy.make_config(steps=4, accumulation=4))
    )
    for a, b in zip(whole[1], parts[1], strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-5)
        np.testing.assert_allclose(a["magnitude"], b["magnitude"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        whole[0].state.params,
        parts[0].state.params,
    )
    # The running mean sees the micro-batches one after the other.
    assert (
        whole[0].state.extra["batch_stats"]["mean"] != parts[0].state.extra["batch_stats"]["mean"]
    )


def test_micro_batches_have_draws_of_their_own():
    class Recorder(toy.ToyStage):
        def loss(self, params, extra, batch, targets, key):
            loss, (metrics, extra) = super().loss(params, extra, batch, targets, key)
            return loss, (metrics | {"draw": jax.random.uniform(key)}, extra)

    config = toy.make_config(steps=2, accumulation=2)
    _, [metrics, _] = run(Recorder(), config, toy.batches(config)(0))
    step_key = jax.random.fold_in(jax.random.key(config.seed), 0)
    keys = [jax.random.split(jax.random.fold_in(step_key, i))[1] for i in range(2)]
    draws = [float(jax.random.uniform(key)) for key in keys]
    assert draws[0] != draws[1]
    np.testing.assert_allclose(metrics["draw"], np.mean(draws), rtol=1e-6)


@pytest.mark.parametrize(("where", "accumulation"), [("loss", 4), ("gradient", 1)])
def test_a_step_that_is_not_finite_changes_nothing(where, accumulation):
    class Bad(toy.ToyStage):
        """NaN in one micro-batch's loss, or a finite loss with a NaN gradient."""

        def targets(self, frozen, batch, key):
            return super().targets(frozen, {"x": jnp.nan_to_num(batch["x"])}, key)

        def loss(self, params, extra, batch, targets, key):
            if where == "loss":
                return super().loss(params, extra, batch, targets, key)
            x = jnp.nan_to_num(batch["x"])
            loss, aux = super().loss(params, extra, {"x": x}, targets, key)
            bias = params["head"]["bias"].sum()
            is_bad = jnp.any(jnp.isnan(batch["x"]))
            # The root of 0 has no gradient.
            distance = jnp.where(is_bad, bias - jax.lax.stop_gradient(bias), 1.0)
            return loss + jnp.sqrt(jnp.abs(distance)), aux

    config = toy.make_config(steps=5, accumulation=accumulation)
    made = Run(Bad(), config)
    data = toy.batches(config, bad=(2, 3))(0)
    seen = []
    for _ in range(4):
        before = host(made.state)
        metrics = made(next(data))
        seen.append((float(metrics["skipped"]), int(made.state.bad_steps)))
        after = host(made.state)
        if metrics["skipped"]:
            jax.tree.map(
                np.testing.assert_array_equal,
                before.replace(step=after.step, bad_steps=after.bad_steps),
                after,
            )
            assert metrics["bad_steps"] == after.bad_steps
        else:
            old, new = before.params["head"]["kernel"], after.params["head"]["kernel"]
            assert metrics["learning_rate"] == 0 or not np.array_equal(old, new)
    assert seen == [(0, 0), (1, 1), (1, 2), (0, 0)]
    assert int(made.state.step) == 4
    assert np.isfinite(metrics["loss"])


def test_frozen_parameters_and_layers_stay_and_need_no_optimizer_state():
    stage = toy.ToyStage(frozen_layers=(0,))
    config = toy.make_config(steps=4)
    made = Run(stage, config)
    before = made.params()
    data = toy.batches(config)(0)
    norms = [made(next(data))["grad_norm"] for _ in range(4)]
    after = made.params()
    np.testing.assert_array_equal(before["fixed"]["kernel"], after["fixed"]["kernel"])
    np.testing.assert_array_equal(before["blocks"]["kernel"][0], after["blocks"]["kernel"][0])
    assert (before["blocks"]["kernel"][1] != after["blocks"]["kernel"][1]).mean() > 0.9
    assert (before["head"]["kernel"] != after["head"]["kernel"]).mean() > 0.9
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path((made.state.opt_state, made.state.ema))
    }
    assert not any("fixed" in name for name in names)
    assert sum("head/kernel" in name for name in names) == 3
    # Frozen layers do not count in the norm that clips.
    _, everything = run(toy.ToyStage(), config, toy.batches(config)(0))
    assert norms[0] < everything[0]["grad_norm"]


def test_parts_have_rates_of_their_own_or_stay_frozen_in_bfloat16():
    parts = (
        PartConfig("blocks/.*", frozen=True),
        PartConfig("head/bias", lr_factor=0.0),
    )
    config = toy.make_config(steps=3)
    optimizer = dataclasses.replace(config.optimizer, parts=parts)
    config = dataclasses.replace(config, optimizer=optimizer, frozen_dtype="bfloat16")
    made = Run(toy.ToyStage(), config)
    before = made.params()
    data = toy.batches(config)(0)
    for _ in range(3):
        made(next(data))
    after = made.params()
    jax.tree.map(np.testing.assert_array_equal, before["blocks"], after["blocks"])
    np.testing.assert_array_equal(after["head"]["bias"], 0)
    assert (before["head"]["kernel"] != after["head"]["kernel"]).mean() > 0.9
    dtypes = {path: x.dtype.name for path, x in flatten_dict(after, sep="/").items()}
    assert dtypes == {
        "blocks/kernel": "bfloat16",
        "fixed/kernel": "bfloat16",
        "head/kernel": "float32",
        "head/bias": "float32",
    }
    assert set(made.state.ema) == {"head"}
    unused = dataclasses.replace(optimizer, parts=(PartConfig("head"),))
    with pytest.raises(ValueError, match="parts: .* found head, which no parameter has"):
        Run(toy.ToyStage(), dataclasses.replace(config, optimizer=unused))


def test_a_loss_over_the_whole_batch_is_not_split():
    class Contrastive(toy.ToyStage):
        loss_is_mean_over_rows = False

    Run(Contrastive(), toy.make_config())
    with pytest.raises(ValueError, match="train.accumulation: expected 1, .* Contrastive"):
        Run(Contrastive(), toy.make_config(accumulation=2))


def test_targets_may_come_from_averaged_weights():
    class Own(toy.ToyStage):
        targets_see_averages = True

        def targets(self, frozen, batch, key):
            averaged = frozen["averaged"]["params"]["head"]["kernel"]
            return super().targets({**frozen, "teacher": averaged}, batch, key)

    made = Run(Own(draws=False), toy.make_config())
    before, params = host(made.state), made.params()
    np.testing.assert_array_equal(before.ema["head"]["kernel"], before.params["head"]["kernel"])
    batch = next(toy.batches(made.config)(0))
    metrics = made(batch)
    stage = toy.ToyStage(draws=False)
    targets = stage.targets({"teacher": before.ema["head"]["kernel"]}, batch, jax.random.key(0))
    loss, _ = stage.loss(params, before.extra, batch, targets, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    with pytest.raises(ValueError, match="train.ema_decay: expected a decay"):
        Run(Own(), toy.make_config(ema_decay=None))


def test_nothing_to_train_is_an_error():
    class Frozen(toy.ToyStage):
        def trainable(self, path):
            return False

    with pytest.raises(ValueError, match="expected parameters to train, found none among the 4"):
        Run(Frozen(), toy.make_config())


def test_initial_weights_replace_those_of_init():
    def initial(variables):
        half = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, jnp.bfloat16), variables["params"])
        return {**variables, "params": half}

    made = Run(toy.ToyStage(initial=initial), toy.make_config())
    for leaf in jax.tree.leaves((made.params(), made.state.ema)):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, 0.5)

    def misshapen(variables):
        head = {"kernel": jnp.zeros((3, 4))}
        return {**variables, "params": {**variables["params"], "head": head}}

    message = (
        r"2 loaded arrays .*\n  params/head/bias: expected \(16,\), found nothing"
        r"\n  params/head/kernel: expected \(16, 16\), found \(3, 4\)"
    )
    with pytest.raises(ValueError, match=message):
        Run(toy.ToyStage(initial=misshapen), toy.make_config())


def test_loaded_teachers_must_be_those_announced():
    class Wrong(toy.ToyStage):
        def load_frozen(self, mesh, rules):
            return {"student": jnp.zeros((16, 16))}

    with pytest.raises(ValueError, match=r"student: expected nothing, found \(16, 16\)"):
        Run(Wrong(), toy.make_config())


def test_the_state_is_what_was_announced_and_its_buffers_are_reused():
    made = Run(toy.ToyStage(), toy.make_config())

    def same(shape, leaf):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)

    jax.tree.map(same, made.target, made.state)
    old = made.state
    made(next(toy.batches(made.config)(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(made.frozen))
    jax.tree.map(same, made.target, made.state)
