"""The arguments of `DalleMini.generate`, checked and encoded."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.pipeline.canvas import Canvas
from dalle_mini_impl.sampling.generate import Progress
from dalle_mini_impl.sampling.requests import CHUNK, IdRequest, Prompt
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.text import without_surrogates

CANDIDATE_BYTES, ID_BYTES = 200, 8
"""Bytes that a candidate and each of its image ids take in the results."""
EMBED_NUMBER_BYTES = 32
"""Bytes of each number of an image embedding that is drawn for a candidate: a Python float in a list."""
SAMPLED_ID_BYTES, LOGIT_BYTES = 40, 12
"""Bytes that each image id of a candidate, and each logit of its next id, take while it is sampled."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRequest:
    """What to sample for one prompt, and how many results to keep."""

    prompt: str
    negative: str
    prompt_ids: Prompt
    """Text ids of both, and the image embedding."""
    seeds: Sequence[int]
    """One per candidate."""
    sampling: SamplingConfig
    keep: int
    chunk: int
    """Candidates decoded at a time."""
    progress: Progress
    canvas: Canvas | None
    """A picture some of whose ids are known."""
    scorer: Scorer | None = None
    """Ranks by cosine, alone or together with the likelihood; None leaves ranking to the transformer."""
    scorer_source: dict[str, str] | None = None
    """Name and identity of a scorer that is not the checkpoint's own."""
    draw_embeds: Callable[[], Sequence[Sequence[float]]] = tuple
    """Makes an image embedding for each seed, by `sampling.prior`; none without. Takes long."""

    @property
    def ids(self) -> IdRequest:
        """What to sample; with `sampling.prior` the image embeddings are drawn now."""
        prunes = self.sampling.prune and self.sampling.rank != "none"
        return IdRequest(
            self.prompt_ids,
            self.seeds,
            self.sampling,
            self.keep if prunes else None,
            self.canvas.known if self.canvas else None,
            image_embeds=self.draw_embeds(),
        )

    def with_rank(self, rank: str) -> "GenerationRequest":
        """The same with this ranking in place of `auto`."""
        if self.sampling.rank != "auto":
            return self
        return dataclasses.replace(self, sampling=dataclasses.replace(self.sampling, rank=rank))

    @property
    def metadata(self) -> dict[str, Any]:
        """What results record of the request, beside prompt and seeds."""
        canvas = {"canvas": self.canvas.metadata} if self.canvas else {}
        scorer = {"scorer": self.scorer_source} if self.scorer and self.scorer_source else {}
        return {"sampling": to_dict(self.sampling), **scorer, **canvas}


def make_request(
    prompt: str,
    *,
    encode: Callable[[str], list[int]],
    recommended: SamplingConfig,
    candidates: int,
    keep: int,
    seed: int,
    negative: str,
    image_embed: Sequence[float],
    seeds: Sequence[int] | None,
    chunk: int | None,
    progress: Progress,
    canvas: Canvas | None,
    sampling: dict[str, Any],
) -> GenerationRequest:
    """Check the arguments of `DalleMini.generate` and encode its prompt.

    Args:
        prompt: see `DalleMini.generate`.
        encode: caption -> text ids.
        recommended: sampling settings that are used where `sampling` has none.
        candidates: see `DalleMini.generate`, as all below but the last.
        keep: how many results to keep.
        seed: of the run.
        negative: what guidance moves away from.
        image_embed: its numbers; none for no embedding.
        seeds: the candidates' own seeds.
        chunk: candidates decoded at a time; None for the default.
        progress: callback.
        canvas: a picture some of whose ids are known.
        sampling: sampling settings by name; None leaves one at its recommendation.

    Raises:
        UserError: a number is out of range, or a sampling setting is unknown.
    """
    check_counts(candidates, keep, seed)
    if not isinstance(prompt, str) or not isinstance(negative, str):
        raise UserError(
            f"expected texts as prompt and negative, got {type(prompt).__name__} and {type(negative).__name__}; call "
            f"generate once for each prompt"
        )
    prompt, negative = without_surrogates(prompt), without_surrogates(negative)
    if seeds is None:
        seeds = [candidate_seed(seed, index) for index in range(candidates)]
    if not seeds or not all(0 <= one < 2**63 for one in seeds):
        raise UserError(f"expected seeds from 0 to 2**63 - 1, at least one, got {list(seeds)}; give one per candidate")
    return GenerationRequest(
        prompt=prompt,
        negative=negative,
        prompt_ids=Prompt(encode(prompt), encode(negative), image_embed),
        seeds=seeds,
        sampling=_merge_settings(recommended, sampling),
        keep=keep,
        chunk=CHUNK if chunk is None else chunk,
        progress=progress,
        canvas=canvas,
    )


def check_counts(candidates: int, keep: int, seed: int) -> None:
    """Check how many to sample and to keep, and the seed of the run.

    Raises:
        UserError: fewer than one candidate would be sampled or kept, or the seed is negative.
    """
    if candidates < 1 or keep < 1:
        raise UserError(f"expected 1 or more of each, got candidates {candidates} and keep {keep}; raise them")
    if seed < 0:
        raise UserError(f"expected a seed of 0 or more, got seed {seed}; choose another")


def check_candidates_memory(
    candidates: int, chunk: int, ids: int, vocab: int, picture_bytes: int, embed_dim: int
) -> None:
    """Refuse more candidates than fit into the memory, before any of them has a seed.

    The cache of keys and values, the largest part of what a chunk needs, is checked when it is made.

    Args:
        candidates: how many to sample.
        chunk: how many at a time.
        ids: image ids of a picture.
        vocab: K, number of image ids.
        picture_bytes: of each candidate's picture that are kept until all candidates are ranked; 0 where only the kept
            ones are decoded.
        embed_dim: width of the image embedding that is drawn for each candidate; 0 for none.

    Raises:
        UserError: they need more than there is, at the least: results and pictures, and what one chunk samples with.
    """
    each = CANDIDATE_BYTES + ids * ID_BYTES + picture_bytes + embed_dim * EMBED_NUMBER_BYTES
    in_chunk = CANDIDATE_BYTES + ids * SAMPLED_ID_BYTES + vocab * LOGIT_BYTES
    needed = candidates * each + min(candidates, chunk) * in_chunk
    check_memory(needed, f"{candidates} candidates", "ask for fewer, or for a smaller chunk")


def _merge_settings(recommended: SamplingConfig, changes: dict[str, Any]) -> SamplingConfig:
    """The recommended settings with those changes that are not None."""
    names = [field.name for field in dataclasses.fields(SamplingConfig)]
    if unknown := sorted(set(changes) - set(names)):
        raise UserError(f"expected sampling settings among {', '.join(names)}, got {unknown[0]!r}; correct its name")
    given = {name: value for name, value in changes.items() if value is not None}
    return from_dict(SamplingConfig, {**to_dict(recommended), **given}, "sampling")
