"""A stage that trains in milliseconds and uses everything the loop offers; also a program.

As a program it is a run in a process of its own, to be killed: `python toy_stage.py WORKDIR STEPS`.
"""

import argparse
import os
import signal
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from internvideo_jax.config import to_dict
from internvideo_jax.parallel.sharding import init_sharded
from internvideo_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from internvideo_jax.training.stage import Stage

WIDTH = 16


def boxed(value, *axes):
    return nn.LogicallyPartitioned(value, names=axes, rules=())


class ToyModel:
    def is_decayed(self, path):
        return path.endswith("kernel")


class ToyStage(Stage):
    """Linear maps against a frozen one, with a drawn mask, dropout and a running mean."""

    module = ToyModel()

    def __init__(self, *, frozen_layers=(), draws=True, initial=None):
        self.frozen_layers = frozen_layers
        self.draws = draws
        self.initial = initial

    def trainable(self, path):
        if path.startswith("blocks/") and self.frozen_layers:
            return np.array([layer not in self.frozen_layers for layer in range(2)])
        return path != "fixed/kernel"

    def example_batch(self, batch_size):
        return {"x": jax.ShapeDtypeStruct((batch_size, WIDTH), jnp.float32)}

    def init(self, key):
        # One draw for all compiles faster.
        layers, fixed, head = jnp.split(jax.random.uniform(key, (4, WIDTH, WIDTH)) - 0.5, (2, 3))
        return {
            "params": {
                "blocks": {"kernel": boxed(0.3 * layers, "layers", "embed", "mlp")},
                "fixed": {"kernel": boxed(3.0 * fixed[0], "embed", "mlp")},
                "head": {
                    "kernel": boxed(0.3 * head[0], "embed", "mlp"),
                    "bias": boxed(jnp.zeros(WIDTH), "mlp"),
                },
            },
            "batch_stats": {"mean": jnp.zeros(())},
        }

    def load_initial(self, variables):
        return variables if self.initial is None else self.initial(variables)

    def init_frozen(self, key):
        return {
            "teacher": boxed(4.0 * jax.random.uniform(key, (WIDTH, WIDTH)) - 2.0, "embed", "mlp")
        }

    def load_frozen(self, mesh, rules):
        return init_sharded(self.init_frozen, mesh, rules, jax.random.key(7))

    def targets(self, frozen, batch, key):
        target = jnp.tanh(batch["x"] @ frozen["teacher"])
        mask = jax.random.bernoulli(key, 0.7, target.shape) if self.draws else 1.0
        return {"target": target, "mask": mask}

    def loss(self, params, extra, batch, targets, key):
        x = batch["x"]
        for kernel in params["blocks"]["kernel"]:
            x = x + jnp.tanh(x @ kernel)
        x = x @ params["fixed"]["kernel"] / 4
        if self.draws:
            x = x * jax.random.bernoulli(key, 0.9, x.shape)
        prediction = x @ params["head"]["kernel"] + params["head"]["bias"]
        loss = jnp.mean(targets["mask"] * (prediction - targets["target"]) ** 2)
        mean = 0.9 * extra["batch_stats"]["mean"] + 0.1 * x.mean()
        return loss, ({"magnitude": jnp.abs(prediction).mean()}, {"batch_stats": {"mean": mean}})

    def save(self, variables, directory, metadata):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(Path(directory).absolute(), variables)


def batches(config, *, bad=(), width=WIDTH):
    """Endless random rows by step; NaN in the steps `bad` (counted from 1)."""

    def start(step):
        while True:
            rng = np.random.default_rng((config.seed, step))
            x = rng.standard_normal((config.rows, width), np.float32)
            step += 1
            if step in bad:
                x[0, 0] = np.nan
            index = np.arange(config.rows, dtype=np.int64) + step * config.rows
            yield {"x": x, "index": index, "replaced": index % 8 == 0}

    return start


def make_config(**changes):
    fields = {
        "batch_size": 8,
        "optimizer": OptimizerConfig(lr=0.3 * 16 / 256, weight_decay=0.05, max_grad_norm=3.0),
        "steps": 12,
        "warmup_steps": 2,
        "num_sample": 2,
        "ema_decay": 0.9,
        "checkpoint": CheckpointConfig(every_steps=4, keep=2),
        "log_every": 1,
        "max_bad_steps": 3,
    }
    return TrainConfig(**fields | changes)


def run_config(config):
    return {"stage": {"kind": "toy"}, "train": to_dict(config)}


def slowed(start, seconds, kill_at):
    """Batches that take their time, and one during which the process is killed."""

    def begin(step):
        for batch in start(step):
            step += 1
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds)
            yield batch

    return begin


class KilledInSave(ToyStage):
    """Its process is killed when one of the models is written, but not yet in its place."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def save(self, variables, directory, metadata):
        super().save(variables, directory, metadata)
        if directory.name == f".{self.name}.partial":
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    from internvideo_jax.training.loop import train

    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--kill_at", type=int)
    parser.add_argument("--kill_in_save", help="name of a model")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--every_steps", type=int, default=4)
    args = parser.parse_args()
    config = make_config(
        steps=args.steps, checkpoint=CheckpointConfig(every_steps=args.every_steps, keep=2)
    )
    data = slowed(batches(config), args.seconds, args.kill_at)
    stage = KilledInSave(args.kill_in_save) if args.kill_in_save else ToyStage()
    done = train(stage, config, data, args.workdir, run_config=run_config(config))
    raise SystemExit(0 if done else 42)


if __name__ == "__main__":
    main()
