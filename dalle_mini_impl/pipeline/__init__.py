"""Prompt -> ranked pictures: `dalle_mini.DalleMini`, the one class that knows every stage.

What `DalleMini.generate` does, in the order of the calls:

1. `request.make_request` checks the arguments, encodes the prompt to text ids and derives one seed per candidate.
2. `sampling.generate.generate_many` samples the image ids of all candidates, with their log-likelihoods; those of
   several prompts together in `DalleMini.generate_many`. With `tile`, `sampling.tiling.close_seams` then samples the
   edges again.
3. `ranking.finish` orders the candidates by likelihood, by the CLIP scorer or by both, and decodes them to
   pictures with the image tokenizer.
4. `results.Result` holds those that are kept, best first, with the metadata that makes them again.

`parts` loads what the checkpoint holds. `drawing` leads through these steps. `prior_embeds` gives each candidate an
image embedding before step 2, where the model has a prior; `diffused` has a diffusion decoder draw pictures of these in
place of step 2; `manipulations` changes pictures through their embeddings. `canvas` makes known image ids of a picture,
for `DalleMini.complete` and `variations`; `previews` shows pictures during step 2, for `stream_previews`; `captions`
samples and ranks captions, for `complete_text` and `caption`; `prompts_file` reads any number of prompts, and `bulk`
writes their pictures as they come.
"""
