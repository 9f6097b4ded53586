"""Text from the same stream: captions sampled, judged, and ranked by how much likelier they make a picture.

The stream is `[BOS][text][image]`, so text is drawn without any picture in sight. To caption one, captions that were
given or sampled blindly are ranked by what the picture's ids then cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.pipeline.request import check_counts
from dalle_mini_impl.sampling.generate import CHUNK
from dalle_mini_impl.sampling.likelihood import likelihood_table, text_log_likelihood
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.sampling.texts import generate_texts
from dalle_mini_impl.text.caption_tokenizer import CaptionTokenizer
from dalle_mini_impl.util.errors import UserError

NO_TEXT = "\ufffd\u2047"
"""What tokenizers decode to where bytes are no UTF-8, or an id stands for nothing."""


@dataclass(frozen=True)
class RankedCaption:
    """A caption and how well a picture fits it."""

    text: str
    gain: float
    """Nats by which it makes the picture likelier than no caption does; below 0 where it makes it less likely."""
    nats: float
    """Log-probability of the caption itself."""


@dataclass(frozen=True, eq=False)
class CaptionModel:
    """What a model knows of captions."""

    text_tokenizer: CaptionTokenizer
    transformer: Transformer
    stream: Stream

    def complete(
        self,
        beginning: str = "",
        candidates: int = 32,
        keep: int = 8,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        chunk: int = CHUNK,
    ) -> list[tuple[str, float]]:
        """Sample captions that begin with a text, and keep the likeliest.

        What was drawn more than once counts once, and what is no text is left out: bytes that make no UTF-8, and texts
        that in the tokenizer's own spelling are too long.

        Args:
            beginning: of all captions; "" begins anew. Its last word may be gone on with, or a next one begun.
            candidates: how many to sample.
            keep: how many to return at most.
            seed: of the run; each candidate's own seed follows from it.
            temperature: divides the logits; 0 always takes the likeliest id.
            top_k: choose among this many likeliest text ids; 0 is all.
            top_p: choose among the fewest ids with at least this probability.
            chunk: candidates drawn at a time, which bounds memory.

        Returns:
            Texts as the tokenizer has them (the shipped one folds case), each with log p(text) in nats, the likeliest
            first.

        Raises:
            UserError: a number is out of range, or the beginning leaves no room.
        """
        check_counts(candidates, keep, seed)
        seeds = [candidate_seed(seed, number) for number in range(candidates)]
        sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        start = self.text_tokenizer.encode(beginning)
        if start[-1:] == [self.text_tokenizer.eos_id]:  # imported tokenizers end every caption
            start = start[:-1]
        drawn = generate_texts(self.transformer, self.stream, start, seeds, sampling, chunk=chunk)
        texts = list(dict.fromkeys(" ".join(self.text_tokenizer.decode(ids).split()) for ids in drawn))
        texts = [text for text in texts if text and not set(NO_TEXT) & set(text) and self._fits(text)]
        if not texts:
            return []
        pairs = zip(texts, self.text_nats(texts).tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[:keep]

    def rank(
        self,
        image_ids: Tensor,
        captions: Sequence[str] | None = None,
        keep: int = 5,
        *,
        blind: bool = False,
        prior: bool = False,
        beginning: str = "",
        candidates: int = 64,
        seed: int = 0,
        **sampling: Any,
    ) -> list[RankedCaption]:
        """Captions by how much likelier they make a picture.

        Args:
            image_ids: (h, w).
            captions: to choose among; None samples some, without having seen the picture.
            keep: how many to return at most.
            blind: judge each image id by the caption and its place alone; see `likelihood.likelihood_table`.
            prior: order by gain and the caption's own nats together, as Bayes has it where the model's idea of which
                captions are common is right.
            beginning: as `complete` has it, and all below, where no captions are given.
            candidates: how many to sample.
            seed: of the run.
            **sampling: `temperature`, `top_k`, `top_p`, `chunk`.

        Returns:
            The best first; equally good ones keep their order.

        Raises:
            UserError: a number is out of range, or there is no caption.
        """
        check_counts(candidates, keep, seed)
        if captions is None:
            drawn = self.complete(beginning, candidates, candidates, seed, **sampling)
            captions = [text for text, _ in drawn]
        texts = list(dict.fromkeys(captions))
        if not texts:
            raise UserError("no captions came to choose among; give some, or sample more")
        ids = [self.encode(text) for text in [*texts, ""]]
        table = likelihood_table(self.transformer, self.stream, ids, image_ids[None], blind=blind)[0].cpu()
        gains = table[:-1] - table[-1]
        nats = text_log_likelihood(self.transformer, self.stream, ids[:-1]).sum(1).cpu()
        order = (gains + nats * prior).argsort(descending=True, stable=True)[:keep].tolist()
        return [RankedCaption(texts[i], float(gains[i]), float(nats[i])) for i in order]

    def table(self, captions: Sequence[str], image_ids: Tensor, **options: Any) -> Tensor:
        """As `likelihood.likelihood_table`, of texts: (P, captions) nats."""
        ids = [self.encode(text) for text in captions]
        return likelihood_table(self.transformer, self.stream, ids, image_ids, **options).cpu()

    def text_nats(self, captions: Sequence[str]) -> Tensor:
        """Log-probability of each caption as a whole, (captions,)."""
        ids = [self.encode(text) for text in captions]
        return text_log_likelihood(self.transformer, self.stream, ids).sum(1).cpu()

    def encode(self, text: str) -> list[int]:
        """Text ids of a caption, cut with a warning where it is longer than the stream has room for."""
        return self.text_tokenizer.truncate(self.text_tokenizer.encode(text), self.stream.config.text_length, text)

    def _fits(self, text: str) -> bool:
        return len(self.text_tokenizer.encode(text)) <= self.stream.config.text_length
