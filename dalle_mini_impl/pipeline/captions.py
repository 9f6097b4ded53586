"""Text from the same transformer: captions sampled, and ranked by how much likelier they make a picture.

The stream is `[BOS][text][image]`, so text is sampled without any picture in its context. To caption a picture,
captions that are given or were sampled that way are ranked by the log-probability of the picture's ids given each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.request import check_counts
from dalle_mini_impl.sampling.generate import CHUNK
from dalle_mini_impl.sampling.likelihood import likelihood_table, text_log_likelihood
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.sampling.texts import generate_texts
from dalle_mini_impl.text.caption_tokenizer import CaptionTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.ranking import best_first, check_finite

UNDECODABLE = "\ufffd\u2047"
"""Characters that tokenizers decode bytes of invalid UTF-8 and ids without text to."""
CAPTION_BYTES, TEXT_ID_BYTES, LOGIT_BYTES = 200, 40, 12
"""Bytes that a sampled caption, each of its ids, and each logit of its next id take."""
DAMAGED = "the transformer's weights are damaged: copy or train it again"
"""Advice where log-probabilities are not numbers."""


@dataclass(frozen=True)
class RankedCaption:
    """A caption and how well a picture fits it."""

    text: str
    """The caption."""
    gain: float
    """log p(picture | caption) - log p(picture | no caption), in nats: above 0 where the caption makes the picture
    likelier."""
    nats: float
    """log p(caption), in nats."""


@dataclass(frozen=True, eq=False)
class CaptionModel:
    """The text side of a transformer: samples captions, and ranks them for a picture.

    Args:
        text_tokenizer: str <-> text ids.
        transformer: the model over the stream, in evaluation mode.
        stream: its layout.
    """

    text_tokenizer: CaptionTokenizer
    transformer: Decoder
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

        Captions that were sampled several times are returned once. Left out are those that are not valid text (invalid
        UTF-8), and those that the tokenizer would encode to more ids than there are text positions.

        Args:
            beginning: of all captions; its last word may be continued. "" leaves all of the caption to the model.
            candidates: how many to sample.
            keep: how many to return at most.
            seed: of the run; each candidate's own seed follows from it.
            temperature: divides the logits; 0 always takes the likeliest id.
            top_k: sample among this many likeliest text ids; 0 is all.
            top_p: sample among the smallest set of likeliest ids with at least this probability, in (0, 1].
            chunk: candidates decoded at a time, which bounds memory.

        Returns:
            Texts as the tokenizer normalises them (the shipped one folds case), each with log p(text) in nats, the
            likeliest first.

        Raises:
            UserError: a number is out of range, or the beginning fills all text positions.
        """
        check_counts(candidates, keep, seed)
        stored = candidates * (CAPTION_BYTES + self.stream.config.text_length * TEXT_ID_BYTES)
        in_chunk = min(candidates, chunk) * self.stream.config.text_vocab * LOGIT_BYTES
        check_memory(stored + in_chunk, f"{candidates} captions", "ask for fewer, or for a smaller chunk")
        seeds = [candidate_seed(seed, index) for index in range(candidates)]
        sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        first_ids = self.text_tokenizer.encode_beginning(beginning)
        sampled = generate_texts(self.transformer, self.stream, first_ids, seeds, sampling, chunk=chunk)
        texts = list(dict.fromkeys(" ".join(self.text_tokenizer.decode(ids).split()) for ids in sampled))
        texts = [text for text in texts if text and not set(UNDECODABLE) & set(text) and self._fits(text)]
        if not texts:
            return []
        nats = check_finite(self.text_nats(texts), "log-probabilities of captions", DAMAGED)
        return [(texts[i], float(nats[i])) for i in best_first(nats)[:keep].tolist()]

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
        """Rank captions by how much likelier they make a picture.

        Args:
            image_ids: (h, w), of the picture.
            captions: to choose from; None samples some, independently of the picture.
            keep: how many to return at most.
            blind: predict each image id from the caption and its position alone; see `likelihood.likelihood_table`.
            prior: order by the sum of gain and log p(caption), which by Bayes' rule is log p(caption | picture) up to a
                constant, if the model knows how common captions are.
            beginning: of sampled captions; this and what follows is used only where `captions` is None.
            candidates: how many to sample.
            seed: of the run.
            **sampling: `temperature`, `top_k`, `top_p` and `chunk`; see `complete`.

        Returns:
            The best first; equally good ones keep their order.

        Raises:
            UserError: a number is out of range, or there is no caption.
        """
        check_counts(candidates, keep, seed)
        if isinstance(captions, str):
            raise UserError(f"expected a list of captions, got the single text {captions!r}; put it into a list")
        if captions is None:
            captions = [text for text, _ in self.complete(beginning, candidates, candidates, seed, **sampling)]
        texts = list(dict.fromkeys(captions))
        if not texts:
            raise UserError("expected captions to choose from, got none; give some, or sample more candidates")
        ids = [self.encode(text) for text in [*texts, ""]]
        table = likelihood_table(self.transformer, self.stream, ids, image_ids[None], blind=blind)[0].cpu()
        gains = table[:-1] - table[-1]
        nats = text_log_likelihood(self.transformer, self.stream, ids[:-1]).sum(1).cpu()
        scores = check_finite(gains + nats, "log-probabilities of captions and of the picture", DAMAGED)
        order = best_first(scores if prior else gains)[:keep].tolist()
        return [RankedCaption(texts[i], float(gains[i]), float(nats[i])) for i in order]

    def likelihood_table(self, captions: Sequence[str], image_ids: Tensor, **options: Any) -> Tensor:
        """Log-probability of each picture (P, h, w) given each caption: (P, captions) nats on the CPU.

        Options are those of `likelihood.likelihood_table`, whose captions are text ids.
        """
        ids = [self.encode(text) for text in captions]
        return likelihood_table(self.transformer, self.stream, ids, image_ids, **options).cpu()

    def text_nats(self, captions: Sequence[str]) -> Tensor:
        """Log-probability of each caption, (captions,) nats on the CPU."""
        ids = [self.encode(text) for text in captions]
        return text_log_likelihood(self.transformer, self.stream, ids).sum(1).cpu()

    def encode(self, text: str) -> list[int]:
        """Text ids of a caption, cut with a warning where it is longer than the stream's text positions."""
        return self.text_tokenizer.truncate(self.text_tokenizer.encode(text), self.stream.config.text_length, text)

    def _fits(self, text: str) -> bool:
        return len(self.text_tokenizer.encode(text)) <= self.stream.config.text_length
