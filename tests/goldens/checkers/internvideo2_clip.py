"""The text tower of InternVideo2-CLIP 1B and 6B, with and without adapters."""

import dataclasses

import numpy as np
from checkers.converted import Converted, convert
from comparison import assert_tensors_close
from golden import Golden, checker

from internvideo_jax.convert.engine.state_dict import to_state_dict
from internvideo_jax.convert.engine.verify import Reference, run_reference


def run(golden: Golden, model: Converted) -> dict[str, np.ndarray]:
    return run_reference(model, Reference(golden.group("in/"), golden.group("out/")))


@checker("internvideo2_clip.text_llama")
def check_llama_text(golden: Golden) -> None:
    c, state = golden.config, golden.group("state/")
    options = {name: c[name] for name in ("clip_embed_dim", "max_len", "pad_id")}
    options["llama"] = dict(c["llama"])
    c.ignore("key_layouts")
    outputs = golden.group("out/")
    if "lora" not in c:
        assert_tensors_close(run(golden, convert("llama_text", options, state)), outputs)
        return
    lora = c["lora"]
    assert lora["scaling"] == lora["lora_alpha"] / lora["r"]
    options |= {"lora_r": lora["r"], "lora_alpha": lora["lora_alpha"]}
    options |= {"lora_dropout": lora["lora_dropout"], "lora_targets": lora["targets"]}
    live = convert("llama_text", options | {"keep_lora": True}, state)
    folded = convert("llama_text", options, state)
    values = run(golden, live)
    values["text_embed_merged"] = run(golden, folded)["text_embed"]
    for key, weight in folded_weights(folded).items():
        values[f"merged/{key}"] = weight
    assert_tensors_close(values, outputs)


def folded_weights(model: Converted) -> dict[str, np.ndarray]:
    """Weights, by the keys of a file without adapters, that adapters were folded into."""
    adapted = [a for a in model.plan.loaded if a.is_other_form]
    plain = [dataclasses.replace(a, keys=a.keys[:1], transform=a.transform) for a in adapted]
    return to_state_dict(model.variables, dataclasses.replace(model.plan, loaded=tuple(plain)))
