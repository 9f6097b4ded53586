"""Decoding on a GPU: all steps of a batch have the same shapes and addresses, so that one recorded step is all of them.

A step on a GPU is a few hundred small kernels, which Python starts more slowly than the GPU runs them. A CUDA graph is
recorded once and started as a whole. What differs between rows (position, guidance, temperature and so on) are values
of tensors, so rows of different prompts share a batch. Nothing in a step waits for the GPU or depends on a value in its
shapes; on a CPU, where nothing is recorded, the same step runs as it is.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.decoder import Cache, Decoder
from dalle_mini_impl.model.foreign.transformer import ForeignTransformer
from dalle_mini_impl.model.kv_cache import KVCache
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.model.patches import PatchTransformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer, embed_ids
from dalle_mini_impl.sampling.decoding import PromptState
from dalle_mini_impl.sampling.next_ids import RowSettings, guide, next_ids
from dalle_mini_impl.sampling.steps import Candidates, log_probabilities
from dalle_mini_impl.util.devices import free_memory
from dalle_mini_impl.util.memory import check_memory

SPAN = 64
"""A step reads the cache up to a multiple of this many positions; for each multiple a graph is recorded. Attention on a
GPU wants masks aligned to 8 of them."""
RECORDINGS = 3
"""Sizes of batches whose recorded steps are kept; pruning makes three."""


def can_record(transformer: Transformer) -> bool:
    """Whether a transformer can be decoded in steps of fixed shape: neither patches nor token shift."""
    is_shifted = isinstance(transformer, ForeignTransformer) and transformer.sources is not None
    return not isinstance(transformer, PatchTransformer) and not is_shifted


class GraphDecoder:
    """A transformer whose steps are recorded. Meets the protocol `model.decoder.Decoder`.

    Args:
        transformer: in evaluation mode; `can_record` holds.
        records: whether steps are recorded as CUDA graphs; without that each is run by itself.
    """

    def __init__(self, transformer: Transformer, records: bool) -> None:
        self.transformer = transformer
        self.records = records
        self._unused: OrderedDict[Any, StaticBatch] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """As `Decoder.device`."""
        return self.transformer.device

    def __call__(self, ids: Tensor, cache: Cache | None = None, image_embed: Tensor | None = None) -> Tensor:
        return self.transformer(ids, cache, image_embed)

    def logits(self, hidden: Tensor, allowed: tuple[int, int] | None = None) -> Tensor:
        """As `Decoder.logits`."""
        return self.transformer.logits(hidden, allowed)

    def new_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """As `Decoder.new_cache`."""
        return self.transformer.new_cache(batch, capacity)

    def take_batch(self, stream: Stream, candidates: int, guided: int, settings: RowSettings) -> "StaticBatch":
        """A batch of so many candidates, of which some have guidance, that nothing else uses until it is given back.

        It comes with what was recorded for the last one of the kind.

        Raises:
            UserError: its cache does not fit into the memory.
        """
        largest_k = min(settings.largest_k, stream.config.image_vocab)
        limits = (settings.smallest_k < stream.config.image_vocab, largest_k)
        kind = (stream.config, candidates, guided, *limits, settings.any_top_p, settings.any_greedy)
        if kind in self._unused:
            return self._unused.pop(kind)
        needed = cache_bytes(self.transformer, candidates + guided, stream.length)
        if needed > free_memory(self.device):
            self._unused.clear()
        what = f"the keys and values of {candidates} candidates"
        check_memory(needed, what, "decode fewer at a time, with a smaller chunk", free_memory(self.device))
        return StaticBatch(self, stream, candidates, guided, settings, kind)

    @property
    def kept_bytes(self) -> int:
        """Bytes of keys and values that are kept for the next batches."""
        return sum(2 * batch.cache.keys.nbytes for batch in self._unused.values())

    def give_back(self, batch: "StaticBatch") -> None:
        """Keep a batch for the next one of its kind."""
        self._unused[batch.kind] = batch
        while len(self._unused) > RECORDINGS:
            self._unused.popitem(last=False)


def free_for_batches(decoder: Decoder) -> int:
    """Bytes that batches can take on the device of a decoder; those that it keeps for the next one count as free."""
    kept = decoder.kept_bytes if isinstance(decoder, GraphDecoder) else 0
    return free_memory(decoder.device) + kept


def whole_spans(positions: int) -> int:
    """The next multiple of `SPAN`."""
    return -(-positions // SPAN) * SPAN


def cache_bytes(transformer: Transformer, rows: int, length: int) -> int:
    """Bytes of keys and values of so many rows of a stream."""
    size = transformer.embed.weight.element_size()
    return 2 * transformer.n_layer * rows * transformer.n_head * whole_spans(length) * transformer.head_dim * size


class StaticCache:
    """Keys and values of R rows, each at a position of its own. Blocks see the rows as positions of a single stream.

    Args:
        transformer: the model.
        rows: R.
        length: of the stream.
    """

    def __init__(self, transformer: Transformer, rows: int, length: int) -> None:
        shape = (transformer.n_layer, rows, transformer.n_head, whole_spans(length), transformer.head_dim)
        device = transformer.device
        self.keys = torch.zeros(shape, device=device, dtype=transformer.embed.weight.dtype)
        self.values = torch.zeros_like(self.keys)
        self.position = torch.zeros(rows, device=device, dtype=torch.int64)
        """(R,) of the next id."""
        self._span = 0
        self._biases: dict[AttentionMask | None, Tensor] = {}
        self._rows = torch.arange(rows, device=device)[:, None]
        self._heads = torch.arange(transformer.n_head, device=device)
        self._places = torch.arange(whole_spans(length), device=device)

    def begin_step(self, span: int) -> None:
        """Begin a step that reads the first `span` positions, a multiple of `SPAN` that no row is beyond."""
        self._span = span
        self._biases = {}

    def _bias(self, attention_mask: AttentionMask | None) -> Tensor:
        """What is added to the scores, (R, 1, 1, span): 0 or minus infinity; made once for all layers with a mask."""
        if attention_mask not in self._biases:
            if attention_mask is None:
                allowed = self._places[: self._span] <= self.position[:, None]
            else:
                allowed = attention_mask.allowed[:, : self._span].index_select(0, self.position)
                allowed = F.pad(allowed, (0, self._span - allowed.shape[1]))
            bias = torch.zeros_like(allowed, dtype=self.keys.dtype).masked_fill(~allowed, -torch.inf)
            self._biases[attention_mask] = bias[:, None, None]
        return self._biases[attention_mask]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention_mask: AttentionMask | None = None
    ) -> Tensor:
        """Store keys and values of each row at its position, and attend from there to all so far.

        Args:
            layer: index of the layer.
            q: (1, n_head, R, head_dim).
            k: the same shape.
            v: the same shape.
            attention_mask: which positions each may attend to.

        Returns:
            (1, n_head, R, head_dim).
        """
        q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))
        where = (self._rows, self._heads, self.position[:, None])
        self.keys[layer].index_put_(where, k.to(self.keys.dtype))
        self.values[layer].index_put_(where, v.to(self.values.dtype))
        keys, values = self.keys[layer, :, :, : self._span], self.values[layer, :, :, : self._span]
        bias = self._bias(attention_mask)
        y = F.scaled_dot_product_attention(q[:, :, None].to(keys.dtype), keys, values, attn_mask=bias)
        return y[:, :, 0].transpose(0, 1)[None]

    def load(self, prompts: KVCache, rows: Tensor) -> None:
        """Begin with the prompt of each row, (R,) indices on the device."""
        length = prompts.length
        self.keys[:, :, :, :length] = prompts.keys[:, :, :, :length].index_select(1, rows)
        self.values[:, :, :, :length] = prompts.values[:, :, :, :length].index_select(1, rows)
        self.position.fill_(length)


class StaticBatch:
    """Tensors of a batch that stay where they are from step to step and from batch to batch, and the recorded steps.

    Args:
        decoder: the model.
        stream: the layout.
        candidates: n.
        guided: how many of them have a second row, with the negative caption.
        settings: of each candidate.
        kind: what batches that can take over these tensors have in common.
    """

    def __init__(
        self, decoder: GraphDecoder, stream: Stream, candidates: int, guided: int, settings: RowSettings, kind: Any
    ) -> None:
        self.kind = kind
        self._decoder, self._stream = decoder, stream
        transformer, device = decoder.transformer, decoder.device
        rows, cells = candidates + guided, stream.image_length
        self.cache = StaticCache(transformer, rows, stream.length)
        self.hidden = torch.zeros(rows, transformer.n_embd, device=device, dtype=transformer.embed.weight.dtype)
        """(R, C), which predicts the next id of each row."""
        self.cell = torch.zeros(1, device=device, dtype=torch.int64)
        """The cell of that id."""
        self.guided = torch.zeros(guided, device=device, dtype=torch.int64)
        """Indices of the candidates with a second row."""
        self.scales = torch.zeros(candidates, 1, device=device)
        """(n, 1), guidance."""
        self.settings = settings.keep(torch.arange(candidates, device=device))
        self.now = Candidates(
            uniforms=torch.zeros(candidates, cells, device=device),
            redraw=torch.zeros(candidates, cells, device=device, dtype=torch.bool),
            image_ids=torch.zeros(candidates, cells, device=device, dtype=torch.int64),
            indices=torch.zeros(candidates, device=device, dtype=torch.int64),
            pieces=torch.zeros(candidates, device=device, dtype=torch.int64),
            log_likelihood=torch.zeros(candidates, device=device),
        )
        self._recorded: dict[int, Callable[[], None]] = {}
        self._pool: Any = None

    def load_settings(self, settings: RowSettings) -> None:
        """Take over the settings of a batch of the same kind."""
        for name, value in vars(settings).items():
            if isinstance(value, Tensor):
                getattr(self.settings, name).copy_(value)

    def run_step(self, span: int) -> None:
        """Draw the next id of each candidate, and run it through the model; `span` covers the ids' positions."""
        if span not in self._recorded:
            if self._decoder.records:
                with torch.cuda.device(self._decoder.device):  # streams and graphs are those of the current device
                    self._recorded[span] = self._record(span)
            else:
                self._recorded[span] = lambda: self._step(span)
        self._recorded[span]()

    @property
    def _changing(self) -> list[Tensor]:
        """What a step changes, besides keys and values at the position of the id."""
        return [self.hidden, self.cell, self.cache.position, self.now.image_ids, self.now.log_likelihood]

    def _record(self, span: int) -> Callable[[], None]:
        """Record a step as a CUDA graph; the batch stays at the step it was at."""
        before = [tensor.clone() for tensor in self._changing]
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # libraries choose kernels and allocate their own memory
            self._step(span)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(span)
        self._pool = graph.pool()
        for tensor, value in zip(self._changing, before, strict=True):
            tensor.copy_(value)
        return graph.replay

    def _step(self, span: int) -> None:
        transformer, now, count = self._decoder.transformer, self.now, len(self.scales)
        all_logits = transformer.logits(self.hidden, self._stream.image_range).float()
        logits, unconditional = all_logits[:count], all_logits[count:]
        guided = logits
        if len(unconditional) == count:
            guided = guide(logits, unconditional, self.scales)
        elif len(unconditional):
            changed = guide(logits[self.guided], unconditional, self.scales[self.guided])
            guided = logits.index_copy(0, self.guided, changed)
        uniforms, redraw, known = (
            values.index_select(1, self.cell)[:, 0] for values in (now.uniforms, now.redraw, now.image_ids)
        )
        ids = torch.where(redraw, next_ids(guided, uniforms, self.settings), known)
        now.image_ids.index_copy_(1, self.cell, ids[:, None])
        now.log_likelihood.add_(log_probabilities(logits, ids))
        # The id of the last cell is run as well, which nothing needs: so all steps are alike.
        self.cache.begin_step(span)
        stream_ids = torch.cat([ids, ids[self.guided]]) + self._stream.image_offset
        position = self.cache.position
        x = embed_ids(stream_ids[None], transformer.coordinates[position], transformer.embed, transformer.positions)
        self.hidden.copy_(transformer.norm(transformer.run_blocks(x, position, self.cache))[0])
        position.add_(1)
        self.cell.add_(1)


class GraphSteps:
    """Steps of a batch by a `GraphDecoder`. Meets the protocol `steps.Steps`.

    Args:
        decoder: the model.
        stream: the layout.
        prompts: what the rows continue.
        captions: of each candidate the prompt with its caption.
        negatives: of each the prompt with its negative caption; None for no guidance.
        scales: guidance of each.
        now: the candidates; copied.
        settings: of each candidate.
    """

    def __init__(
        self,
        decoder: GraphDecoder,
        stream: Stream,
        prompts: PromptState,
        *,
        captions: Sequence[int],
        negatives: Sequence[int | None],
        scales: Sequence[float],
        now: Candidates,
        settings: RowSettings,
    ) -> None:
        self._decoder, self._stream = decoder, stream
        self._is_guided = torch.tensor([row is not None for row in negatives])
        rows = torch.tensor([*captions, *(row for row in negatives if row is not None)]).to(decoder.device)
        self._batch = self._begin(now, settings, torch.tensor(scales)[:, None].to(decoder.device))
        assert isinstance(prompts.cache, KVCache)
        self._first_position, self._first_cell = prompts.cache.length, prompts.cache.length - stream.prefix_length
        self._batch.cache.load(prompts.cache, rows)
        self._batch.hidden.copy_(prompts.hidden[:, -1].index_select(0, rows))
        self._batch.cell.fill_(self._first_cell)

    @property
    def now(self) -> Candidates:
        """As `Steps.now`."""
        return self._batch.now

    def draw(self, cell: int) -> None:
        """As `Steps.draw`."""
        end = self._first_position + cell - self._first_cell + 1
        self._batch.run_step(whole_spans(end))

    def keep(self, candidates: Tensor) -> None:
        """As `Steps.keep`."""
        old, chosen = self._batch, candidates.cpu()
        own_rows = len(self._is_guided) + self._is_guided.cumsum(0) - 1
        rows = torch.cat([chosen, own_rows[chosen][self._is_guided[chosen]]]).to(candidates.device)
        self._is_guided = self._is_guided[chosen]
        now = Candidates(*(values[candidates] for values in old.now))
        self._batch = self._begin(now, old.settings.keep(candidates), old.scales[candidates])
        new = self._batch
        for layer in range(len(old.cache.keys)):  # one by one, which takes less memory
            new.cache.keys[layer] = old.cache.keys[layer].index_select(0, rows)
            new.cache.values[layer] = old.cache.values[layer].index_select(0, rows)
        new.cache.position.copy_(old.cache.position[rows])
        new.hidden.copy_(old.hidden[rows])
        new.cell.copy_(old.cell)
        self._decoder.give_back(old)

    def close(self) -> None:
        """As `Steps.close`."""
        self._decoder.give_back(self._batch)

    def _begin(self, now: Candidates, settings: RowSettings, scales: Tensor) -> StaticBatch:
        """A batch with the candidates' own tensors; its rows are still to be loaded."""
        guided = self._is_guided.nonzero()[:, 0].to(scales.device)
        batch = self._decoder.take_batch(self._stream, len(scales), len(guided), settings)
        batch.load_settings(settings)
        batch.guided.copy_(guided)
        batch.scales.copy_(scales)
        for values, new in zip(batch.now, now, strict=True):
            values.copy_(new)
        return batch
