"""The text and audio towers of stage 2, and the filterbank that the latter reads."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from checkers.internvideo2_stage1_models import Converted
from comparison import TOLERANCE, assert_gradients_close, assert_tensor_close, assert_tensors_close
from golden import Golden, checker

from internvideo_jax.convert.engine.plan import plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.state_dict import to_state_dict, to_tree
from internvideo_jax.convert.engine.upstream import infer_config
from internvideo_jax.convert.engine.verify import Reference
from internvideo_jax.convert.families import beats, bert
from internvideo_jax.data.transforms.filterbank import (
    audio_input,
    filterbank,
    mel_bank,
    povey_window,
)
from internvideo_jax.data.transforms.resampling import resampled
from internvideo_jax.models import build
from internvideo_jax.preprocessing import AudioPreprocessing


def convert(
    options: Mapping[str, Any], state: Mapping[str, np.ndarray], architecture: str | None = None
) -> Converted:
    """The model of a golden's tensors; options that no class has are refused."""
    found = recognize({key: x.shape for key, x in state.items()}, architecture=architecture)
    config = infer_config(found, given=options)
    made = plan(found, config)
    return Converted(build(config), to_tree(state, made), made)


def check(golden: Golden, model: Converted, run: Any, loss: str, key_bias: str) -> None:
    """Checks all outputs, and the gradients of `loss` that the file holds.

    Softmax takes away what a key's bias adds to its row of scores.
    """
    inputs, outputs = golden.group("in/"), golden.group("out/")

    def objective(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables = {**model.variables, "params": params}
        values = run(model.module, variables, inputs, Reference(inputs, outputs))
        return values[loss], {name: x for name, x in values.items() if name in outputs}

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        gradients, values = gradient(model.variables["params"])
    tolerance = TOLERANCE
    if "probe" in inputs:
        # Products of both signs: their rounding grows with the length of the whole.
        length = np.linalg.norm(outputs["features"] * inputs["probe"])
        tolerance *= max(1.0, float(length / np.abs(outputs[loss])))
    expected = outputs.pop(loss)
    assert_tensor_close(loss, values.pop(loss), expected, tolerance=tolerance)
    assert_tensors_close(values, outputs)
    wanted = golden.config["grads"]
    ours = to_state_dict({"params": gradients}, model.plan)
    ours = {key: x for key, x in ours.items() if any(part in key for part in wanted)}
    zero = [key for key in ours if key.endswith(key_bias)]
    assert_gradients_close(ours, golden.group("grad/"), zero=zero)


@checker("internvideo2_stage2.bert")
def check_bert(golden: Golden) -> None:
    model = convert(dict(golden.config["bert"]), golden.group("state/"))
    check(golden, model, bert.FAMILY.recipes["bert"].run, "mlm_loss", "self.key.bias")


@checker("internvideo2_stage2.beats")
def check_beats(golden: Golden) -> None:
    golden.config["beats"].expect(finetuned_model=False)
    model = convert(dict(golden.config["beats"]), golden.group("state/"))
    check(golden, model, beats.FAMILY.recipes["beats"].run, "loss", "k_proj.bias")


@checker("internvideo2_stage2.beats_fbank")
def check_filterbank(golden: Golden) -> None:
    c = golden.config
    # Logarithms of bins far quieter than their frame show the rounding of the Fourier transform,
    # narrow mel bins that of the logarithm; both are float32 in the reference.
    rounding = 3 * TOLERANCE
    banks = {f"melbank{n}": mel_bank(n, 16_000, 512) for n in c["mels"] if c["mel_banks"]}
    values = {}
    for i in range(c["n"]):
        (waveform,) = golden[f"in/waveform_{i}"]
        for n in c["mels"]:
            raw = filterbank(waveform, n)
            padded = audio_input(waveform, AudioPreprocessing(num_mels=n, num_frames=c["pad"]))
            values[f"fbank{n}_raw_{i}"] = raw
            values[f"fbank{n}_norm_{i}"] = padded[: len(raw)]
            values[f"fbank{n}_padded_{i}"] = padded
    outputs = golden.group("out/")
    assert_tensor_close("povey400", povey_window(400), outputs.pop("povey400"))
    assert_tensors_close(values | banks, outputs, tolerance=rounding)


@checker("internvideo2_stage2.audio")
def check_audio(golden: Golden) -> None:
    c, outputs = golden.config, golden.group("out/")
    sample_rate = AudioPreprocessing().sample_rate

    def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
        return np.concatenate(list(resampled([waveform], rate, sample_rate)))

    values = {}
    for rate in c.get("rates", []):
        values[f"from_{rate}"] = resample(golden[f"in/wave_{rate}"][0], rate)[None]
    if "rate" in c:
        # Upstream takes ten seconds of a longer sound.
        longest, start = 10 * sample_rate, c["start"]
        waveform = resample(golden["in/stereo"].mean(axis=0), c["rate"])
        values["mono16k_head"] = waveform[None, : outputs["mono16k_head"].shape[1]]
        if len(waveform) > longest:
            waveform = waveform[start : start + longest]
        num_frames, num_mels = outputs["fbank"].shape
        preprocessing = AudioPreprocessing(num_mels=num_mels, num_frames=num_frames)
        values["fbank"] = audio_input(waveform, preprocessing)
    assert_tensors_close(values, outputs)
