"""Config keys and values that were renamed in 0.2. Files that use the old names are read, with a warning; until 0.3."""

KEYS: dict[str, dict[str, str]] = {
    "ImageTokenizerConfig": {"foreign": "imported"},
    "TransformerConfig": {
        "attention": "attention_masks",
        "last_attention": "last_attention_mask",
        "kernel": "mask_kernel",
        "masks_from": "mask_origin",
        "stable": "divide_by_max",
    },
    "EncodeRun": {"soft": "soft_ids", "temperature": "soft_temperature"},
    "PlateauConfig": {"least_gain": "min_gain"},
    "TransformerRun": {"languages": "language_weights"},
    "ScorerRun": {
        "languages": "language_weights",
        "language": "validation_language",
        "reconstructed": "reconstructed_share",
    },
    "BlockConfig": {"turn_values": "rotate_values", "shift": "token_shift"},
}
"""Old key -> new key, by the name of the config class."""

VALUES: dict[str, dict[str, dict[str, str]]] = {
    "ImageTokenizerConfig": {"network": {"ours": "vqvae"}},
}
"""New key -> old value -> new value, by the name of the config class."""
