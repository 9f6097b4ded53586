"""Small CLIPs and batches."""

import torch

from dalle_mini_impl.model.clip import CLIP


def make_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(PAIRS, 3, 14, 14, generator=generator) * 2 - 1
    text_ids = torch.randint(4, 29, (PAIRS, 11), generator=generator)
    text_ids[torch.arange(PAIRS), torch.randint(2, 11, (PAIRS,), generator=generator)] = 3
    return pixels, text_ids, torch.tensor([5, 1, 2, 1, 1, 4])  # group 1 lies on both processes


def make_clip(sigmoid: bool = False) -> CLIP:
    torch.manual_seed(4)
    shape = {"image_size": 14, "patch_size": 7, "n_embd": 22, "n_head": 2, "embed_dim": 13}
    return CLIP(
        image_layers=1, text_layers=1, text_vocab=29, text_length=11, pad_id=0, eos_id=3, sigmoid=sigmoid, **shape
    )


PAIRS = 6
