import pytest
import torch
from helpers import reference
from helpers.models import TEXT_LENGTH, TEXT_VOCAB, make_transformer
from helpers.sampling import make_packable_text_model, make_text_model

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.sampling.texts import generate_texts
from dalle_mini_impl.util.errors import UserError

PLAIN = SamplingConfig()
GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture(scope="module")
def text_model():
    return make_text_model()


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize(
    ("settings", "beginning"),
    [
        (PLAIN, []),
        (PLAIN, [5, 300]),
        (SamplingConfig(temperature=0.7, top_k=41), [17]),
        (SamplingConfig(temperature=1.3, top_p=0.9), []),
        (GREEDY, [3]),
    ],
    ids=["plain", "continued", "top-k", "top-p", "greedy"],
)
def test_generate_texts_equals_the_uncached_unbatched_reference(position, settings, beginning):
    transformer, stream = make_text_model(position)
    seeds = [3, 2**32 - 1, 11, 12, 13]
    captions = generate_texts(transformer, stream, beginning, seeds, settings)
    expected = [reference.generate_text(transformer, stream, beginning, seed, settings) for seed in seeds]
    assert captions == expected


def test_captions_have_all_lengths(text_model):
    captions = generate_texts(*text_model, [], range(101), PLAIN)
    assert {len(text_ids) for text_ids in captions} == set(range(2, TEXT_LENGTH + 1))


def test_a_caption_depends_on_its_seed_alone(text_model):
    transformer, stream = text_model
    seeds = list(range(100, 137))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    captions = generate_texts(transformer, stream, [5], seeds, PLAIN)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(text_ids) for text_ids in captions}) > 20
    for index in (0, 17, 36):
        assert generate_texts(transformer, stream, [5], [seeds[index]], PLAIN) == [captions[index]]
    assert generate_texts(transformer, stream, [5], seeds, PLAIN, chunk=7) == captions
    assert generate_texts(transformer, stream, [5], seeds[::-1], PLAIN) == captions[::-1]


def test_every_text_id_and_no_image_id_is_sampled_and_no_caption_is_empty():
    transformer, stream = make_transformer()
    with torch.no_grad():  # image ids get far greater logits
        transformer.head.weight[stream.image_offset :] *= 1000
    captions = generate_texts(transformer, stream, [], range(211), SamplingConfig(temperature=5.0))
    sampled = {text_id for text_ids in captions for text_id in text_ids}
    assert min(sampled) >= 0
    assert max(sampled) < TEXT_VOCAB
    assert len(sampled) > 0.9 * TEXT_VOCAB
    assert all(captions)


def test_the_model_gets_the_beginning_once_and_then_padded_captions_as_in_training(text_model):
    transformer, stream = text_model
    inputs = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    captions = generate_texts(transformer, stream, [5, 300], list(range(11)), PLAIN)
    hook.remove()
    beginning, *steps = inputs
    assert beginning.tolist() == [[2, 5, 300]]
    assert torch.equal(torch.cat([beginning.expand(11, -1), *steps], 1), stream.prefix(captions)[:, :-1])


def test_decoding_stops_when_all_captions_have_ended():
    transformer, stream = make_transformer()
    shapes = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    with torch.no_grad():  # all logits are 0, so greedy sampling takes id 0 and never ends
        transformer.head.weight[:] = 0
        transformer.norm.weight[:] = 0
    generate_texts(transformer, stream, [5], [1, 2, 3], GREEDY)
    steps_without_end = len(shapes)
    with torch.no_grad():  # the padding id of the next position is the likeliest
        transformer.norm.weight[:] = 1
        transformer.head.weight[TEXT_VOCAB : TEXT_VOCAB + TEXT_LENGTH] = 1e-3
        transformer.head.weight[TEXT_VOCAB + 1] = transformer(torch.tensor([[2, 5]]))[0, -1]
    shapes.clear()
    assert generate_texts(transformer, stream, [5], [1, 2, 3], GREEDY) == [[5]] * 3
    hook.remove()
    assert shapes == [(1, 2)]
    assert steps_without_end == 1 + TEXT_LENGTH - 2


def test_a_stream_without_bos_needs_a_beginning():
    transformer, stream = make_text_model(bos_id=-1)
    with pytest.raises(UserError, match="stream has no BOS, got none; give at least one text id"):
        generate_texts(transformer, stream, [], [1], PLAIN)
    captions = generate_texts(transformer, stream, [5], range(37), PLAIN)
    assert {text_ids[0] for text_ids in captions} == {5}
    assert len({len(text_ids) for text_ids in captions}) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "expected at least one seed, got none; give one per caption"),
        ({"chunk": 0}, "chunk of at least 1 caption, got 0"),
        ({"sampling": SamplingConfig(top_k=368)}, "top_k from 0 to 367, got 368"),
        ({"beginning": [1] * 7}, "a beginning of at most 6 text ids, got 7"),
        ({"beginning": [367]}, "expected text ids from 0 to 366"),
    ],
)
def test_arguments_out_of_range_are_refused(text_model, changes, message):
    arguments = {"beginning": [5], "seeds": [1], "sampling": PLAIN, **changes}
    with pytest.raises(UserError, match=message):
        generate_texts(*text_model, **arguments)


@pytest.mark.skipif(load() is None, reason="there is no C compiler with OpenMP")
def test_compiled_code_samples_captions_that_one_pass_over_the_stream_finds_likely():
    transformer, stream = make_packable_text_model()
    packed = pack(transformer, "bf16", stream.image_range)
    captions = generate_texts(packed, stream, [5], range(29), PLAIN)
    assert captions == generate_texts(packed, stream, [5], range(29), PLAIN, chunk=7)
    (greedy,) = generate_texts(packed, stream, [], [1], GREEDY)
    prefix = stream.prefix([greedy])
    with torch.inference_mode():
        logits = packed.logits(packed(prefix[:, :-1]), stream.text_range)[0, : len(greedy)]
    gaps = logits[:, :TEXT_VOCAB].amax(1) - logits.gather(1, prefix[0, 1 : 1 + len(greedy), None])[:, 0]
    assert float(gaps.max()) < 0.1 * float(logits.std())
