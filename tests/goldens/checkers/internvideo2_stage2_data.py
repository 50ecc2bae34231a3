"""Captions, frames and pixels as stage 2 reads them."""

from golden import Golden, checker

from internvideo_jax.data.transforms.captions import clean_caption


@checker("internvideo2_stage2.data_pre_text")
def check_captions(golden: Golden) -> None:
    c = golden.config
    assert [clean_caption(text, c.get("max_l")) for text in c["inputs"]] == c["outputs"]
    # The file's one tensor says that its case ran.
    assert golden["out/ok"].all()
