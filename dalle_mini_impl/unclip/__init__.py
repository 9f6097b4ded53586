"""unCLIP, the method of DALL-E 2 (Ramesh et al. 2022): image embeddings of a scorer, drawn for captions by a prior.

`prior` draws them, by the samplers of `schedule`; `directions` are ways through the space of embeddings.
`diffusion_decoder` draws pictures of them, which `upsampler` enlarges, and `solve` finds the noise of a picture. The
transformer draws pictures of them in `pipeline`.
"""
