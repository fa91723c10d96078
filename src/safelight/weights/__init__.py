"""Weight files as users have them, none of them trusted: safetensors headers, and pickled checkpoints made into safetensors once."""
