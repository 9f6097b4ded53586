"""The networks, readable alone: this folder needs configs, errors and the files of a checkpoint, nothing of training.

Reading order of the transformer:

1. `stream`: captions and pictures as one sequence of ids, and back.
2. `attention` (rotary positions, causal attention), `masks` (which positions each attends to), `kv_cache`.
3. `blocks`: norms, feed-forward layer, the pre-norm block. `transformer`: embeddings, blocks, logits.
4. `decoder`: the protocols that generation asks for. `patches`: several image ids per position.

Reading order of the image tokenizer: `vqvae` (encoder and decoder), `quantizers/` (vectors <-> image ids),
`image_tokenizer`. `clip` is the scorer's network. `build` makes them all from configs. `foreign/` is needed for
imported models only.
"""
