"""The text tower of InternVideo2-CLIP 1B and 6B, with and without adapters."""

import numpy as np
from checkers.internvideo2_stage1_models import Converted
from checkers.internvideo2_stage2 import convert
from comparison import assert_tensors_close
from golden import Golden, checker

from internvideo_jax.convert.engine.plan import export_plan
from internvideo_jax.convert.engine.state_dict import to_state_dict
from internvideo_jax.convert.engine.verify import Reference, run_reference


def run(golden: Golden, model: Converted) -> dict[str, np.ndarray]:
    return run_reference(model, Reference(golden.group("in/"), golden.group("out/")))


@checker("internvideo2_clip.text_llama")
def check_llama_text(golden: Golden) -> None:
    c, state = golden.config, golden.group("state/")
    options = {name: c[name] for name in ("clip_embed_dim", "max_len", "pad_id")}
    options["llama"] = dict(c["llama"])
    outputs = golden.group("out/")
    if "lora" not in c:
        assert_tensors_close(run(golden, convert(options, state)), outputs)
        return
    # Which of peft's spellings this is makes no difference.
    lora, _ = c["lora"], dict(c.get("key_layouts", {}))
    assert lora["scaling"] == lora["lora_alpha"] / lora["r"]
    options |= {"lora_r": lora["r"], "lora_alpha": lora["lora_alpha"]}
    options |= {"lora_dropout": lora["lora_dropout"], "lora_targets": lora["targets"]}
    live = convert(options | {"keep_lora": True}, state)
    folded = convert(options, state)
    values = run(golden, live)
    values["text_embed_merged"] = run(golden, folded)["text_embed"]
    weights = export_plan(folded.module.config, "text_encoder.")
    for key, weight in to_state_dict(folded.variables, weights).items():
        if f"merged/{key}" in outputs:
            values[f"merged/{key}"] = weight
    assert_tensors_close(values, outputs)
