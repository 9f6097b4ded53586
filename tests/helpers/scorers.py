"""Scorers whose embeddings can be computed by hand."""

import math

import torch
from torch import nn

from dalle_mini_impl.model.clip import CLIP
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.scorer import Scorer

SIZE, LENGTH, PAD, EOS = 21, 13, 5, 3


class LetterTokenizer:
    """One id per letter; the padding and end-of-text ids are neither the lowest nor the highest."""

    vocab_size, pad_id, eos_id = 37, PAD, EOS

    def encode(self, text):
        return [6 + ord(letter) % 31 for letter in text]

    def encode_batch(self, texts, length, add_eos=True):
        rows = torch.full((len(texts), length), self.pad_id)
        for row, text in zip(rows, texts, strict=True):
            text_ids = [*self.encode(text)[: length - 1], self.eos_id]
            row[: len(text_ids)] = torch.tensor(text_ids)
        return rows


class AngleModel(nn.Module):
    """Embeds in the plane: a picture's angle is its red value, a text's angle 90° if its first letter is b, else 0°."""

    embed_dim = 2

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(5)))

    def encode_image(self, pixels):
        angle = pixels[:, 0, 0, 0]
        return 7 * torch.stack((angle.cos(), angle.sin()), dim=1)

    def encode_text(self, text_ids):
        angle = (text_ids[:, 0] == LetterTokenizer().encode("b")[0]) * (math.pi / 2)
        return 0.1 * torch.stack((angle.cos(), angle.sin()), dim=1)


def make_scorer(model=None, **settings):
    return Scorer(model or make_clip(), LetterTokenizer(), Preprocess(SIZE), LENGTH, **settings)


class CertainSigmoidModel(AngleModel):
    """A sigmoid model whose large bias makes nearly every probability 1."""

    def __init__(self):
        super().__init__()
        self.logit_bias = nn.Parameter(torch.tensor([40.0]))


def make_clip(**changes):
    torch.manual_seed(0)
    shape = {"image_size": SIZE, "patch_size": 7, "n_embd": 22, "n_head": 2, "embed_dim": 17}
    shape |= {"image_layers": 2, "text_layers": 3, "text_vocab": 37, "text_length": LENGTH}
    return CLIP(**(shape | {"pad_id": PAD, "eos_id": EOS} | changes))
