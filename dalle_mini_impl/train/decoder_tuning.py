"""Training of an image tokenizer's decoder alone, on ids that are not those of the picture it is to give.

When a picture is drawn, some ids are not the best ones, and a decoder that has only seen those of real pictures shows
every slip. Here it sees slips of two kinds, beside the right picture: ids with near codebook vectors (Qiu et al. 2025,
RobusTok), and ids that the transformer draws in place of the picture's own, given the caption and the picture's own ids
before them. Encoder and codebook stay as they are, and so do the ids of every picture.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.checkpoint.find import find_checkpoint, load_text_tokenizer
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.data.scenes.composer import Scene
from dalle_mini_impl.data.token_cache import CaptionSampler
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.next_ids import RowSettings, next_ids
from dalle_mini_impl.text.caption_tokenizer import CaptionTokenizer
from dalle_mini_impl.train.shared.order import batch_indices
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.shared.start import Start
from dalle_mini_impl.util.errors import UserError

CHANGES = 4
"""Last number of the seed of what is changed in a row, which keeps it apart from what the picture shows."""
VECTORS_AT_A_TIME = 1024
"""The distances of so many codebook vectors to all others are computed at a time, which bounds memory."""


class IdChanges(NamedTuple):
    """What is to be changed in the ids of some rows of a step's global batch."""

    prefix: Tensor
    """(B, prefix_length) what stands before the picture in the transformer's stream; (B, 0) without a transformer."""
    numbers: Tensor
    """(B, 2 + 2 × h × w) uniform in [0, 1): for both shares, then for each cell where the change is and what it is."""


class Drawer(NamedTuple):
    """The transformer that draws ids again."""

    transformer: Transformer
    stream: Stream
    text_tokenizer: CaptionTokenizer
    sampling: SamplingConfig
    """Those of its checkpoint; guidance is not used."""


class DecoderTuning:
    """Changes the ids of pictures; made by `open_tuning`.

    Args:
        config: settings of the stage.
        tokenizer: the image tokenizer.
        store: the training pictures.
        drawer: None where no ids are drawn.
        identities: of the parts that the run trains with beside the image tokenizer, by name.
    """

    def __init__(
        self,
        config: ImageTokenizerRun,
        tokenizer: ImageTokenizer,
        store: PictureStore,
        drawer: Drawer | None,
        identities: dict[str, str],
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.entries = store.entries
        self.captions = CaptionSampler(store.entries, {})
        self.drawer = drawer
        self.identities = identities

    def make_changes(self, step: int, rows: slice, scenes: SceneRows, composed: Sequence[Scene]) -> IdChanges:
        """What to change in the ids of some rows, which follows from the seed, the step and the row.

        Args:
            step: optimizer step, from 0.
            rows: rows of the global batch.
            scenes: which of them are scenes; as in `batch_pictures` these are the last ones.
            composed: these scenes.
        """
        run = self.config.run
        scene_rows, pictures = scenes.split(rows)
        indices = batch_indices(step, scenes.pictures, len(self.entries), run)[list(pictures.values())]
        height, width = self.config.model.grid
        numbers, texts = [], []
        for place, row in enumerate([*pictures, *scene_rows]):
            random = np.random.default_rng([run.seed, step, row, CHANGES])
            numbers.append(random.random(2 + 2 * height * width, np.float32))
            if place < len(indices):
                has_caption = bool(self.entries[indices[place]].captions)
                texts.append(self.captions.sample(indices[place], random).text if has_caption else "")
        texts += [scene.caption for scene in composed]
        prefix = torch.empty(len(numbers), 0)
        if self.drawer:
            length = self.drawer.stream.config.text_length
            prefix = self.drawer.stream.prefix([self.drawer.text_tokenizer.encode(text)[:length] for text in texts])
        return IdChanges(prefix, torch.from_numpy(np.stack(numbers)))

    @torch.no_grad()
    def changed_ids(self, pixels: Tensor, changes: IdChanges) -> Tensor:
        """The changed ids (B, h, w) of pictures (B, 3, H, W), which the decoder is to decode to the same pictures."""
        changes = IdChanges._make(part.to(pixels.device, non_blocking=True) for part in changes)
        ids = self.tokenizer.encode(pixels)
        place, value = changes.numbers[:, 2:].chunk(2, 1)
        place, value = place.view(ids.shape), value.view(ids.shape)
        tune = self.config.tune
        replaced, drawn = (changes.numbers[:, i, None, None] for i in range(2))
        replaced, drawn = replaced * tune.replaced_share, drawn * tune.drawn_share
        is_replaced, is_drawn = place < replaced, (place >= replaced) & (place < replaced + drawn)
        changed = torch.where(is_replaced, self._neighbours(ids, value), ids) if tune.replaced_share else ids
        return torch.where(is_drawn, self._drawn(ids, value, changes.prefix), changed) if self.drawer else changed

    def _neighbours(self, ids: Tensor, uniforms: Tensor) -> Tensor:
        """One of the nearest other ids for each id."""
        nearest = self._nearest
        return nearest[ids, (uniforms * nearest.shape[1]).long().clamp(max=nearest.shape[1] - 1)]

    @cached_property
    def _nearest(self) -> Tensor:
        """(K, n) the ids with the nearest vectors of each id; made when needed, as a state may be loaded before."""
        table = self.tokenizer.table().float()
        count = min(self.config.tune.neighbours, len(table) - 1)
        rows = []
        for own in torch.arange(len(table), device=table.device).split(VECTORS_AT_A_TIME):
            distances = torch.cdist(table[own], table)
            distances[torch.arange(len(own)), own] = torch.inf
            rows.append(distances.topk(count, largest=False).indices)
        return torch.cat(rows)

    def _drawn(self, ids: Tensor, uniforms: Tensor, prefix: Tensor) -> Tensor:
        """For each id what the transformer draws in its place, given the picture's own ids before it."""
        assert self.drawer is not None
        transformer, stream, _, sampling = self.drawer
        hidden = transformer(stream.join(prefix, ids)[:, :-1])[:, stream.prefix_length - 1 :]
        logits = transformer.logits(hidden, stream.image_range).float().flatten(0, 1)
        settings = RowSettings.of([sampling], ids.device).keep(torch.zeros(len(logits), dtype=torch.int64))
        drawn = next_ids(logits, stream.to_order(uniforms).flatten(), settings)
        return stream.to_grid(drawn.view(len(ids), -1))


def open_tuning(
    config: ImageTokenizerRun, start: Start, tokenizer: ImageTokenizer, store: PictureStore, device: str
) -> DecoderTuning | None:
    """Leave only the decoder of an image tokenizer to be trained, if a config asks for that, and open what draws ids.

    Args:
        config: settings of the stage.
        start: the image tokenizer that the training starts from.
        tokenizer: has its weights; its encoder and quantizer are frozen.
        store: the training pictures.
        device: where the transformer goes.

    Returns:
        What changes the ids; None without `tune.decoder_only`.

    Raises:
        UserError: settings contradict each other, or the transformer is missing or reads other ids.
    """
    tune = config.tune
    if tune.transformer and not tune.drawn_share:
        raise UserError(
            f"expected tune.drawn_share above 0 with tune.transformer={tune.transformer}, got 0; set it, or leave "
            f"tune.transformer out"
        )
    if not tune.decoder_only:
        if tune.replaced_share or tune.drawn_share:
            raise UserError(
                f"expected tune.decoder_only=true with tune.replaced_share or tune.drawn_share, got "
                f"{tune.replaced_share:g} and {tune.drawn_share:g} without it; set it, or leave them out"
            )
        return None
    if not config.start_from:
        raise UserError(
            "expected start_from with tune.decoder_only, got none; name the checkpoint whose decoder is tuned"
        )
    if tune.replaced_share + tune.drawn_share > 1:
        raise UserError(
            f"expected tune.replaced_share and tune.drawn_share of at most 1 together, got {tune.replaced_share:g} and "
            f"{tune.drawn_share:g}; lower one"
        )
    if tune.replaced_share and config.model.codebook_size < 2:
        raise UserError("expected two or more ids for tune.replaced_share, got 1; leave it out")
    tokenizer.encoder.requires_grad_(False)
    tokenizer.quantizer.requires_grad_(False)
    if not tune.drawn_share:
        return DecoderTuning(config, tokenizer, store, None, {})
    folder = find_checkpoint(tune.transformer or config.start_from)
    transformer, layout = load_transformer(folder, device)
    trained_with = read_part(folder, "image_tokenizer", weights=False).image_ids
    if (trained_with, layout.grid) != (start.image_ids, config.model.grid):
        raise UserError(
            f"expected a transformer of the {config.model.grid[0]} × {config.model.grid[1]} ids of image tokenizer "
            f"{start.image_ids}, got one of {layout.grid[0]} × {layout.grid[1]} ids of {trained_with} in {folder}; "
            f"name another tune.transformer, or set model.image_size"
        )
    drawer = Drawer(transformer, Stream(layout), load_text_tokenizer(folder), load_settings(folder).sampling)
    identity = read_part(folder, "transformer", weights=False).identity
    return DecoderTuning(config, tokenizer, store, drawer, {"transformer": identity})
