"""An image embedding in the first positions of the stream: in the model, in sampling and in compiled code."""

import copy
import dataclasses

import pytest
import torch
from helpers import reference
from helpers.models import randomise
from torch.nn import functional as F

from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import generate, generate_many
from dalle_mini_impl.sampling.graph_decoder import GraphDecoder
from dalle_mini_impl.sampling.likelihood import likelihood_table, log_likelihood, text_log_likelihood
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.sampling.requests import IdRequest, Prompt
from dalle_mini_impl.sampling.texts import generate_texts
from dalle_mini_impl.sampling.tiling import close_seams
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.util.errors import UserError

needs_compiler = pytest.mark.skipif(load() is None, reason="there is no C compiler with OpenMP")
E, D, CELLS = 3, 10, 24
STREAM = StreamConfig(
    text_length=7, text_vocab=367, grid=(4, 6), image_vocab=61, bos_id=1, embed_positions=E, embed_dim=D
)
CAPTION = [5, 300, 17]
SETTINGS = SamplingConfig(temperature=0.9, top_k=31, guidance=2.5)
KINDS = {
    "rope": {},
    "learned": {"position": "learned"},
    "absolute": {"position": "absolute"},
    "masks": {"attention_masks": ("row", "column"), "last_attention_mask": "conv", "mask_kernel": 3},
    "patches": {"patch": 2, "depth_layers": 2},
    "patches, learned": {"patch": 2, "position": "learned"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind="rope", n_embd=32, embed_positions=E, **changes):
    config = TransformerConfig(n_layer=2, n_head=2, n_embd=n_embd, **KINDS[kind])
    layout = dataclasses.replace(STREAM, patch=config.patch, embed_positions=embed_positions, **changes)
    transformer = randomise(build_transformer(config, layout), 3)
    with torch.no_grad():  # the picture shall depend much on the embedding
        transformer.embed.weight *= 0.3
    return transformer, Stream(layout)


def embedding(seed=0):
    return tuple(torch.randn(D, generator=torch.Generator().manual_seed(seed)).tolist())


def with_embedding_as_ids(transformer, stream, embed):
    """The same model, in which the ids of "no embedding" mean this embedding."""
    other = copy.deepcopy(transformer)
    unit = F.normalize(torch.tensor(embed), dim=0) * D**0.5
    with torch.no_grad():
        other.embed.weight[stream.embed_offset :] += (transformer.image_prefix.project.weight @ unit).view(E, -1)
    return other


def image_ids(count=3, seed=1):
    return torch.randint(61, (count, 4, 6), generator=torch.Generator().manual_seed(seed))


# --- the stream


def test_ids_and_positions_come_before_those_of_the_text():
    stream = Stream(STREAM)
    assert stream.image_range == (374, 435)
    assert stream.vocab_size == 435 + E
    assert (stream.text_offset, stream.prefix_length, stream.length) == (4, 11, 35)
    assert stream.prefix([[5], []]).tolist() == [
        [435, 436, 437, 1, 5, *range(368, 374)],
        [435, 436, 437, 1, *range(367, 374)],
    ]
    without_bos = Stream(dataclasses.replace(STREAM, bos_id=-1))
    assert without_bos.prefix([[5]]).tolist() == [[435, 436, 437, 5, *range(368, 374)]]
    captions, pictures = stream.split(stream.join(stream.prefix([[5], []]), image_ids(2)))
    assert captions == [[5], []]
    assert torch.equal(pictures, image_ids(2))


@pytest.mark.parametrize("patch", [1, 2])
def test_coordinates_of_text_and_picture_are_those_without_embedding(patch):
    config = dataclasses.replace(STREAM, patch=patch)
    plain = Stream(dataclasses.replace(config, embed_positions=0)).coordinates()
    coordinates = Stream(config).coordinates()
    assert torch.equal(coordinates[E:], plain)
    assert coordinates[:E].tolist() == [[-3, -3], [-2, -2], [-1, -1]]


@every_kind
def test_positions_of_text_and_picture_mean_the_same_without_embedding(kind):
    (transformer, _), (plain, _) = make(kind), make(kind, embed_positions=0)
    if transformer.positions is None:
        assert torch.equal(transformer.table[E:], plain.table)
        return
    assert torch.equal(transformer.coordinates[E:], plain.coordinates)
    sizes = [[table.num_embeddings for table in model.positions] for model in (transformer, plain)]
    assert sizes[0] == [size + E for size in sizes[1]]
    first = transformer.coordinates[:E]
    assert first.tolist() == [[size - E + i for size in sizes[0]] for i in range(E)]


def test_every_position_sees_the_embedding():
    transformer, _ = make("masks")
    for block in transformer.blocks:
        assert block.attention.attention_mask.allowed[E:, :E].all()


def test_rows_of_embeddings():
    stream = Stream(STREAM)
    assert stream.embeddings([(), ()]) is None
    rows = stream.embeddings([(), [3.0] + [0.0] * 8 + [4.0]])
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[0.0] * D, pytest.approx([0.6] + [0.0] * 8 + [0.8])]


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        ([1.0] * 9, f"expected an image embedding of {D} numbers, .* got 9; use that scorer"),
        ([0.0] * D, "expected an image embedding of finite numbers that are not all 0, got another; embed"),
        ([1.0] * 9 + [float("nan")], "expected an image embedding of finite numbers that are not all 0, got another"),
        ([1.0] * 9 + [float("inf")], "expected an image embedding of finite numbers that are not all 0, got another"),
    ],
)
def test_embeddings_that_are_none_are_refused(embed, message):
    transformer, stream = make()
    calls = [
        lambda: generate(transformer, stream, Prompt(CAPTION, (), embed), [1], SETTINGS),
        lambda: log_likelihood(transformer, stream, CAPTION, image_ids(), embed),
        lambda: text_log_likelihood(transformer, stream, [CAPTION], embed),
        lambda: generate_texts(transformer, stream, [], [1], SETTINGS, image_embed=embed),
    ]
    for call in calls:
        with pytest.raises(UserError, match=message):
            call()


def test_a_model_without_positions_for_it_refuses_an_embedding():
    transformer, stream = make(embed_positions=0, embed_dim=0)
    with pytest.raises(UserError, match="expected a model with positions for an image embedding, got one without"):
        generate(transformer, stream, Prompt(CAPTION, (), embedding()), [1], SETTINGS)
    with pytest.raises(ValueError, match="expected no image embedding for a model without positions for it"):
        transformer(torch.zeros(1, 5, dtype=torch.int64), None, torch.zeros(1, D))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(
        UserError, match="expected an image embedding with a width in 0 or more positions, got embed_di"
    ):
        Stream(dataclasses.replace(STREAM, embed_dim=0))
    foreign = TransformerConfig(n_layer=1, n_head=2, n_embd=32, block=BlockConfig(sandwich=True))
    with pytest.raises(UserError, match="no positions for an image embedding with blocks that only imported models"):
        build_transformer(foreign, STREAM)


# --- the model


@every_kind
@torch.no_grad()
def test_an_embedding_is_added_to_the_ids_of_no_embedding(kind):
    transformer, stream = make(kind)
    ids = stream.join(stream.prefix([CAPTION] * 3), image_ids())
    embeds = stream.embeddings([embedding(1), (), embedding(2)])
    hidden = transformer(ids, None, embeds)
    for row, one in ((0, embedding(1)), (2, embedding(2))):
        expected = with_embedding_as_ids(transformer, stream, one)(ids[row : row + 1])[0]
        torch.testing.assert_close(hidden[row], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden[1], transformer(ids)[1], atol=1e-5, rtol=1e-5)
    assert (hidden[0] - hidden[1]).abs().mean() > 0.1


@pytest.mark.parametrize("kind", ["rope", "patches"])
def test_a_new_model_says_nothing_of_embeddings_but_learns_from_them(kind):
    config = TransformerConfig(n_layer=2, n_head=2, n_embd=32, **KINDS[kind])
    layout = dataclasses.replace(STREAM, patch=config.patch)
    transformer = build_transformer(config, layout)
    stream = Stream(layout)
    ids = stream.join(stream.prefix([CAPTION] * 3), image_ids())
    embeds = stream.embeddings([embedding(seed) for seed in range(3)])
    assert torch.equal(transformer(ids, None, embeds), transformer(ids))
    with torch.no_grad():
        for block in transformer.blocks:  # zero in a new model, as the head is: no gradient would go through
            block.attention.out.weight.normal_(std=0.1)
        transformer.head.weight.normal_(std=0.1)
    losses = StreamLoss(transformer, stream)(ids[:, :-1], ids[:, 1:], image_embed=embeds)
    sum(losses).backward()
    assert transformer.image_prefix.project.weight.grad.abs().max() > 0
    assert transformer.embed.weight.grad[stream.embed_offset :].abs().amax(1).min() > 0


@pytest.mark.parametrize("bos_id", [1, -1])
@torch.no_grad()
def test_losses_leave_out_the_positions_of_the_embedding(bos_id):
    transformer, stream = make(bos_id=bos_id)
    ids = stream.join(stream.prefix([CAPTION] * 3), image_ids())
    embeds = stream.embeddings([embedding(seed) for seed in range(3)])
    text, image = StreamLoss(transformer, stream)(ids[:, :-1], ids[:, 1:], image_embed=embeds)
    nats = text_log_likelihood(transformer, stream, [CAPTION], embedding(0))
    assert nats.shape == (1, 7)
    rows = [text_log_likelihood(transformer, stream, [CAPTION], embedding(seed)) for seed in range(3)]
    torch.testing.assert_close(text, -torch.cat(rows).mean(), atol=1e-5, rtol=1e-5)
    rows = [log_likelihood(transformer, stream, CAPTION, image_ids()[i : i + 1], embedding(i)) for i in range(3)]
    torch.testing.assert_close(image, -torch.cat(rows).mean(), atol=1e-5, rtol=1e-5)


def test_likelihoods_are_those_of_the_model_in_which_ids_mean_the_embedding():
    transformer, stream = make()
    other = with_embedding_as_ids(transformer, stream, embedding())
    close = {"atol": 1e-4, "rtol": 1e-5}
    given = text_log_likelihood(transformer, stream, [CAPTION, []], embedding())
    torch.testing.assert_close(given, text_log_likelihood(other, stream, [CAPTION, []]), **close)
    for blind in (False, True):
        tables = [
            likelihood_table(model, stream, [CAPTION, []], image_ids(), blind=blind, image_embed=embed)
            for model, embed in ((transformer, embedding()), (other, ()))
        ]
        torch.testing.assert_close(*tables, **close)


# --- sampling


@pytest.mark.parametrize("kind", ["rope", "masks", "patches"])
def test_guidance_moves_away_from_no_caption_and_no_embedding(kind):
    transformer, stream = make(kind)
    other = with_embedding_as_ids(transformer, stream, embedding())
    uniforms = torch.rand(CELLS, generator=torch.Generator().manual_seed(7)).tolist()
    given, without = (stream.prefix([ids])[0].tolist() for ids in (CAPTION, [41]))
    for uniform in uniforms:
        logits = reference.image_logits(other, given, stream.image_range)
        null = reference.image_logits(transformer, without, stream.image_range)
        guided = (null + SETTINGS.guidance * (logits - null)).tolist()
        chosen = reference.next_id(guided, uniform, SETTINGS.temperature, SETTINGS.top_k, SETTINGS.top_p)
        given.append(stream.image_offset + chosen)
        without.append(stream.image_offset + chosen)
    sampled = generate(transformer, stream, Prompt(CAPTION, [41], embedding()), [7], SETTINGS)
    expected = torch.tensor(given[-CELLS:]) - stream.image_offset
    assert torch.equal(stream.to_order(sampled.image_ids[0]), expected)


def different_requests():
    """Some with embeddings and some without, of captions that are the same and of others."""
    return [
        IdRequest(Prompt(CAPTION, (), embed), [3, 4], settings)
        for settings in (SETTINGS, SamplingConfig(top_k=9, guidance=1.0))
        for embed in (embedding(1), (), embedding(2))
    ] + [IdRequest(Prompt((), (), embedding(1)), list(range(5)), SETTINGS, prune_to=1)]


def check_requests_together(decoder, stream):
    """Requests of one batch get what each gets alone, and their embeddings make a difference."""
    requests = different_requests()
    together = list(generate_many(decoder, stream, requests, chunk=64))
    for request, result in zip(requests, together, strict=True):
        options = {"prune_to": request.prune_to, "chunk": 64}
        expected = generate(decoder, stream, request.prompt, request.seeds, request.sampling, **options)
        assert torch.equal(result.image_ids, expected.image_ids)
    assert len({tuple(result.image_ids.flatten().tolist()) for result in together}) == len(together)
    return together


@pytest.mark.parametrize("kind", ["rope", "patches"])
def test_prompts_of_different_embeddings_share_a_batch(kind):
    transformer, stream = make(kind)
    for request, result in zip(different_requests(), check_requests_together(transformer, stream), strict=True):
        nats = log_likelihood(
            transformer, stream, request.prompt.text_ids, result.image_ids, request.prompt.image_embed
        )
        torch.testing.assert_close(nats.sum(1), result.log_likelihood, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("kind", ["rope", "learned", "masks"])
def test_recorded_steps_draw_the_same(kind):
    transformer, stream = make(kind)
    decoder = GraphDecoder(transformer, records=False)
    for request, result in zip(different_requests(), check_requests_together(decoder, stream), strict=True):
        options = {"prune_to": request.prune_to, "chunk": 64}
        expected = generate(transformer, stream, request.prompt, request.seeds, request.sampling, **options)
        assert torch.equal(result.image_ids, expected.image_ids)


@needs_compiler
@pytest.mark.parametrize("kind", ["rope", "learned", "masks", "patches"])
@torch.inference_mode()
def test_compiled_code_is_as_close_to_fp32_as_bf16_is(kind):
    exact, stream = make(kind, n_embd=64)
    ids = stream.join(stream.prefix([CAPTION] * 13), image_ids(13))
    embeds = stream.embeddings([embedding(seed) for seed in range(12)] + [()])

    def logits(decoder):
        return decoder.logits(decoder(ids, None, embeds), stream.image_range).float()

    packed = pack(exact, "bf16", stream.image_range)
    distance = (logits(packed) - logits(exact)).square().mean().sqrt()
    rounded = (logits(copy.deepcopy(exact).bfloat16()) - logits(exact)).square().mean().sqrt()
    assert 0 < distance < 1.5 * rounded < 0.1 * logits(exact).std()


@needs_compiler
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("kind", ["rope", "patches"])
def test_compiled_code_draws_prompts_of_different_embeddings_together(kind, precision):
    transformer, stream = make(kind, n_embd=64)
    decoder = pack(transformer, precision, stream.image_range)
    for request, result in zip(different_requests(), check_requests_together(decoder, stream), strict=True):
        nats = log_likelihood(decoder, stream, request.prompt.text_ids, result.image_ids, request.prompt.image_embed)
        torch.testing.assert_close(nats.sum(1), result.log_likelihood, atol=0.1, rtol=0)


def test_captions_are_drawn_for_an_embedding():
    transformer, stream = make()
    other = with_embedding_as_ids(transformer, stream, embedding())
    settings = SamplingConfig()
    drawn = generate_texts(transformer, stream, [5], range(7), settings, image_embed=embedding())
    assert drawn == generate_texts(other, stream, [5], range(7), settings)
    assert drawn != generate_texts(transformer, stream, [5], range(7), settings)


def test_seams_are_closed_given_the_embedding():
    transformer, stream = make()
    other = with_embedding_as_ids(transformer, stream, embedding())
    plain = SamplingConfig(guidance=1.0)
    closed = []
    for model, embed in ((transformer, embedding()), (other, ())):
        prompt = Prompt(CAPTION, (), embed)
        sampled = generate(model, stream, prompt, [1, 2], plain)
        everywhere = torch.ones(4, 6, dtype=torch.bool)
        options = {"generated": sampled, "redraw": everywhere, "chunk": 2, "progress": lambda count: None}
        closed.append(close_seams(model, stream, prompt, [1, 2], plain, **options))
    assert torch.equal(closed[0].image_ids, closed[1].image_ids)
    torch.testing.assert_close(closed[0].log_likelihood, closed[1].log_likelihood, atol=1e-3, rtol=1e-5)
