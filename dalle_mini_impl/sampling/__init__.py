"""Sampling from the transformer, and how likely it finds given pictures and captions.

Reading order:

1. `next_ids`: logits -> next id (temperature, top-k, top-p, guidance), as pure functions.
2. `decoding` and `steps`: run prompts once, branch their cache for all candidates, draw and append one id at a time.
3. `requests` and `generate`: captions -> image ids, with guidance, known ids and pruning.
4. `texts`: beginning of a caption -> captions.
5. `tiling`: a second pass over the edges of pictures that are to be laid side by side.
6. `likelihood`: log-probabilities of given pictures and captions.

`seeds` and `known_ids` hold what these share; `packing`, `native_decoder`, `native_patches` and `native` make a
transformer fast to decode with on a CPU, `graph_decoder` on CUDA.
"""
