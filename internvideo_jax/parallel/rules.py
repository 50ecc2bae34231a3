"""Which mesh axes each logical axis of parameters and activations is split over."""

from collections.abc import Sequence

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# Earlier rules win where two dimensions of one array ask for the same mesh axis. Names that map to
# None are listed because a name without a rule is an error (it would be a typing mistake).
DEFAULT_RULES: Rules = (
    # Activations.
    ("batch", ("data", "fsdp")),
    ("tokens", "context"),
    ("embed_act", None),
    # Parameters; "heads" and "mlp" are activations' too.
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("target", "tensor"),
    ("embed", "fsdp"),
    ("head_dim", None),
    # Attention pooling has its own, usually different, number of heads and costs next to nothing.
    ("pooler_heads", None),
    ("qkv", None),
    ("layers", None),
    ("decoders", None),
    ("norm", None),
    ("position", None),
    ("patch", None),
    ("pooled", None),
)
