"""CLIP-like scorers: pictures and texts as vectors in one space, for ranking, classification and search.

Reading order:
1. `model.clip`: the networks of the scorers trained by this package.
2. `preprocess`: how pictures are resized and normalised for a network.
3. `scorer`: cosines, rankings and label probabilities; the public `Scorer`.
4. `picture_files`: picture files to vectors, with bounded memory.
5. `adapters`: CLIP and SigLIP models of other libraries as scorers.
6. `identity`: a hash that tells one scorer from another.

The training losses are in `train.losses.contrastive`, measurements in `evaluate.scorer` and `evaluate.zero_shot`.
"""
