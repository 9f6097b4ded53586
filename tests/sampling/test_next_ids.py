import math
from collections import Counter

import pytest
import torch
from helpers import reference
from hypothesis import given, strategies

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.next_ids import RowSettings, guide, id_probabilities, next_ids, validate_sampling
from dalle_mini_impl.sampling.steps import sample_ids
from dalle_mini_impl.util.errors import UserError

ALMOST_ONE = 1 - 2**-24  # the largest number that torch.rand returns in fp32
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


@pytest.fixture(params=["compiled", "pytorch"], autouse=True)
def implementation(request, monkeypatch):
    """Every test runs with compiled code and with PyTorch operations."""
    if request.param == "compiled":
        if load() is None:
            pytest.skip("there is no C compiler with OpenMP")
        monkeypatch.setitem(globals(), "next_ids", sample_ids)


def of_rows(count, **settings):
    """The same settings for so many rows."""
    return RowSettings.of([SamplingConfig(**{**PLAIN, **settings})] * count)


def sample(logits, uniforms, **settings):
    """Ids sampled from one row of logits, one for each uniform number."""
    uniforms = torch.tensor(uniforms, dtype=torch.float32)
    rows = torch.tensor(logits, dtype=torch.float32).expand(len(uniforms), -1)
    return next_ids(rows, uniforms, of_rows(len(rows), **settings)).tolist()


def frequencies(logits, count=10_000, **settings):
    """How often each id is sampled when the uniform numbers run evenly through [0, 1)."""
    counts = Counter(sample(logits, [(step + 0.5) / count for step in range(count)], **settings))
    return [counts[index] / count for index in range(len(logits))]


# --- expected values computed by hand: probabilities 1/8, 1/2, 1/8, 1/4 for the ids 0 to 3

LOGITS = [math.log(1 / 8), math.log(1 / 2), math.log(1 / 8), math.log(1 / 4)]


def test_each_id_has_an_interval_as_long_as_its_probability_in_the_order_of_ids():
    # id 0 up to .125, id 1 up to .625, id 2 up to .75, id 3 up to 1
    uniforms = [0.0, 0.12, 0.13, 0.62, 0.63, 0.74, 0.76, ALMOST_ONE]
    assert sample(LOGITS, uniforms) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_constant_added_to_all_logits_changes_nothing():
    uniforms = [0.1, 0.6, 0.7, 0.95]
    assert sample([x + 300 for x in LOGITS], uniforms) == sample(LOGITS, uniforms) == [0, 1, 2, 3]


def test_frequencies_are_probabilities():
    assert frequencies(LOGITS) == pytest.approx([1 / 8, 1 / 2, 1 / 8, 1 / 4], abs=2e-4)


def test_temperature_divides_the_logits():
    # at 1/2 the probabilities are squared: 1, 16, 1, 4 of 22; at 2 they become roots
    assert frequencies(LOGITS, temperature=0.5) == pytest.approx([1 / 22, 16 / 22, 1 / 22, 4 / 22], abs=2e-4)
    roots = [p**0.5 for p in (1 / 8, 1 / 2, 1 / 8, 1 / 4)]
    assert frequencies(LOGITS, temperature=2) == pytest.approx([r / sum(roots) for r in roots], abs=2e-4)


def test_top_k_counts_ids_and_keeps_their_proportions():
    assert frequencies(LOGITS, top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=2e-4)
    assert frequencies(LOGITS, top_k=3) == pytest.approx([1 / 7, 4 / 7, 0, 2 / 7], abs=2e-4)
    assert frequencies(LOGITS, top_k=4) == frequencies(LOGITS)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, [0, 1, 0, 0]),
        (0.49, [0, 1, 0, 0]),
        (0.51, [0, 2 / 3, 0, 1 / 3]),
        (0.74, [0, 2 / 3, 0, 1 / 3]),
        (0.76, [1 / 7, 4 / 7, 0, 2 / 7]),
        (0.88, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
        (1.0, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
    ],
)
def test_top_p_keeps_the_fewest_ids_that_reach_it(top_p, expected):
    assert frequencies(LOGITS, top_p=top_p) == pytest.approx(expected, abs=2e-4)


def test_top_p_keeps_no_further_id_once_it_is_reached_exactly():
    assert frequencies([0, 0, 0, 0], top_p=0.5) == [0.5, 0.5, 0, 0]


def test_top_p_is_applied_to_the_probabilities_after_top_k():
    # of the two likeliest, id 1 has 2/3: enough for .6, though it has only 1/2 of all
    assert frequencies(LOGITS, top_k=2, top_p=0.6) == [0, 1, 0, 0]
    assert frequencies(LOGITS, top_p=0.6) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=2e-4)


def test_top_p_is_applied_to_the_probabilities_after_the_temperature():
    # squared, id 1 has 16 of 22: enough for .7
    assert frequencies(LOGITS, temperature=0.5, top_p=0.7) == [0, 1, 0, 0]


# --- ties


def test_of_equal_logits_exactly_k_are_kept_lower_ids_first():
    assert frequencies([2, 5, 5, 2, 5, 5], top_k=3) == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3, 0], abs=2e-4)
    assert frequencies([0] * 7, top_k=5) == pytest.approx([0.2] * 5 + [0] * 2, abs=2e-4)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}])
def test_greedy_sampling_takes_the_first_of_equal_logits(settings):
    assert sample([1, 7, 3, 7, 7], [0.0, 0.3, ALMOST_ONE], **settings) == [1, 1, 1]
    assert sample([0] * 1021, [ALMOST_ONE], **settings) == [0]


def test_greedy_sampling_does_not_depend_on_the_uniform_number():
    logits = torch.randn(13, 101, generator=torch.Generator().manual_seed(0))
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-4}):
        for uniform in (0.0, 0.5, ALMOST_ONE):
            ids = next_ids(logits, torch.full((13,), uniform), of_rows(13, **settings))
            assert torch.equal(ids, logits.argmax(-1))


# --- the ends of the interval


def test_the_ends_of_the_interval_give_the_first_and_the_last_kept_id():
    assert sample([3, 1, 2], [0.0, ALMOST_ONE]) == [0, 2]
    assert sample([1, 3, 2, 0], [0.0, ALMOST_ONE], top_k=2) == [1, 2]
    assert sample([1, 2, 3, 0], [0.0, ALMOST_ONE], top_p=0.7) == [1, 2]


def test_intervals_include_their_lower_end():
    # intervals of exactly 1/4: a number on the border belongs to the id that begins there
    assert sample([0, 0, 0, 0], [0.0, 0.25, 0.5, 0.75]) == [0, 1, 2, 3]


def test_rounding_never_leads_past_the_last_kept_id():
    # 4099 probabilities add up to less than 1 in fp32
    logits = torch.randn(5, 4099, generator=torch.Generator().manual_seed(0))
    ids = next_ids(logits, torch.full((5,), ALMOST_ONE), of_rows(5))
    assert bool(((ids >= 0) & (ids < 4099)).all())
    ids = next_ids(logits, torch.full((5,), ALMOST_ONE), of_rows(5, top_k=7))
    kept = logits.topk(7).indices
    assert bool((ids[:, None] == kept).any(1).all())


@pytest.mark.parametrize("uniform", [0.0, 0.5, ALMOST_ONE])
def test_ids_of_probability_0_are_never_sampled(uniform):
    assert sample([-math.inf, 0, -math.inf, 0], [uniform])[0] in (1, 3)
    assert sample([-1e9, 0, -1e9, -1e9], [uniform]) == [1]


def test_a_single_id_is_always_sampled():
    assert sample([-3], [0.0, 0.7]) == [0, 0]


# --- logits that are no numbers


@pytest.mark.parametrize("temperature", [0.0, 0.9, 1e-300, 1e300])
@pytest.mark.parametrize("top_k", [0, 1, 5, 23])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_if_no_id_is_possible_it_is_0(temperature, top_k, top_p):
    for value in (math.nan, -math.inf):
        assert (
            sample([value] * 23, [0.0, 0.5, ALMOST_ONE], temperature=temperature, top_k=top_k, top_p=top_p) == [0] * 3
        )


@pytest.mark.parametrize("top_k", [0, 1, 2, 15, 16, 17, 18, 19])
def test_not_a_number_counts_as_impossible(top_k):
    logits = [math.nan, 3, -math.inf, 3, math.nan, *[-math.inf] * 9, 1e-3, math.nan, math.nan, -math.inf, math.nan]
    possible = [[1, 3, 14], [1], [1, 3]][top_k] if top_k < 3 else [1, 3, 14]
    ids = sample(logits, [step / 100 for step in range(100)] + [ALMOST_ONE], top_k=top_k)
    assert sorted(set(ids)) == possible
    assert sample(logits, [0.5], temperature=0.0) == [1]


def test_infinite_logits_share_all_probability():
    logits = [1, math.inf, math.nan, 5, math.inf, -math.inf, 3e38]
    assert frequencies(logits, count=100) == [0, 0.5, 0, 0, 0.5, 0, 0]
    assert frequencies(logits, count=100, top_k=1) == [0, 1, 0, 0, 0, 0, 0]
    assert sample(logits, [0.9], temperature=0.0) == [1]


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-4, 0.5])
def test_quotients_too_large_for_a_number_are_greedy(temperature):
    assert sample([-3e38, 2e38, 1.9e38], [0.0, 0.5, ALMOST_ONE], temperature=temperature) == [1, 1, 1]
    assert sample([-3e38, -2e38, -2e38], [0.0, 0.4, 0.6, ALMOST_ONE], temperature=temperature) == [1, 1, 2, 2]


@given(data=strategies.data(), vocab=strategies.integers(1, 70))
def test_ids_are_possible_whatever_the_logits_are(data, vocab):
    values = strategies.sampled_from([math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 0.0, -0.0, 1.0, -2.0, 0.5])
    row = data.draw(strategies.lists(values, min_size=vocab, max_size=vocab))
    top_k = data.draw(strategies.integers(0, vocab))
    temperature = data.draw(strategies.sampled_from([1e-300, 0.1, 1.0, 50.0]))
    uniform = data.draw(strategies.sampled_from([0.0, 0.3, ALMOST_ONE]))
    cleaned = [-math.inf if math.isnan(value) else min(value, torch.finfo(torch.float32).max) for value in row]
    likeliest = sorted(range(vocab), key=lambda index: (-cleaned[index], index))[: top_k or vocab]
    (sampled,) = sample(row, [uniform], temperature=temperature, top_k=top_k)
    assert sampled in likeliest
    assert cleaned[sampled] > -math.inf or (sampled == 0 and max(cleaned) == -math.inf)


# --- against the reference


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 23])
@pytest.mark.parametrize("top_p", [0.2, 0.9, 1.0])
def test_next_ids_equals_the_reference(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(67, 23, generator=generator)
    logits[::3] = logits[::3].round()  # with ties
    uniforms = torch.rand(67, generator=generator)
    ids = next_ids(logits, uniforms, of_rows(67, temperature=temperature, top_k=top_k, top_p=top_p))
    expected = [
        reference.next_id(row, uniform, temperature, top_k, top_p)
        for row, uniform in zip(logits.tolist(), uniforms.tolist(), strict=True)
    ]
    assert ids.tolist() == expected


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 0}], ids=str
)
def test_id_probabilities_are_the_frequencies_of_sampled_ids(settings):
    probabilities = id_probabilities(torch.tensor([LOGITS]), of_rows(1, **settings))[0].tolist()
    assert probabilities == pytest.approx(frequencies(LOGITS, **settings), abs=1e-4)


def test_rows_do_not_depend_on_each_other():
    logits = torch.randn(7, 13, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(7, generator=torch.Generator().manual_seed(1))
    settings = {"temperature": 1.3, "top_k": 11, "top_p": 0.9}
    together = next_ids(logits, uniforms, of_rows(7, **settings)).tolist()
    alone = [int(next_ids(logits[row : row + 1], uniforms[row : row + 1], of_rows(1, **settings))) for row in range(7)]
    assert together == alone


def test_rows_of_different_settings_are_sampled_as_alone():
    configs = [
        SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        for temperature in (0.0, 0.4, 1.3)
        for top_k in (0, 1, 5, 13)
        for top_p in (0.3, 0.9, 1.0)
    ]
    count = len(configs)
    logits = 2 * torch.randn(count, 13, generator=torch.Generator().manual_seed(0))
    logits[::3] = logits[::3].round()  # with ties
    for seed in range(20):
        uniforms = torch.rand(count, generator=torch.Generator().manual_seed(seed))
        together = next_ids(logits, uniforms, RowSettings.of(configs))
        for row, config in enumerate(configs):
            alone = next_ids(logits[row : row + 1], uniforms[row : row + 1], RowSettings.of([config]))
            assert int(alone) == int(together[row])
        kept = torch.arange(1, count, 3)
        assert torch.equal(next_ids(logits[kept], uniforms[kept], RowSettings.of(configs).keep(kept)), together[kept])


def test_arguments_and_the_global_random_state_are_not_changed():
    logits, uniforms = torch.randn(5, 13), torch.rand(5)
    before = logits.clone(), uniforms.clone(), torch.get_rng_state()
    for temperature in (0.0, 0.7):
        ids = next_ids(logits, uniforms, of_rows(5, temperature=temperature, top_k=3, top_p=0.8))
        assert ids.dtype == torch.int64
        assert ids.shape == (5,)
    guide(logits, logits[:, :], 3)
    assert torch.equal(logits, before[0])
    assert torch.equal(uniforms, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_half_precision_logits_are_accepted():
    logits = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.bfloat16)
    assert next_ids(logits, torch.tensor([0.05]), of_rows(1)).tolist() == [0]


# --- guidance


def test_guidance_extrapolates_from_unconditional_to_conditional_logits():
    conditional, unconditional = torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 6.0]])
    assert guide(conditional, unconditional, 0).tolist() == [[1, 6]]
    assert guide(conditional, unconditional, 1).tolist() == [[3, 5]]
    assert guide(conditional, unconditional, 3).tolist() == [[7, 3]]
    scales = torch.tensor([[0.0], [3.0]])
    assert guide(conditional, unconditional.expand(2, -1), scales).tolist() == [[1, 6], [7, 3]]


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature of 0 or more, got -0\.1"),
        ({"temperature": math.nan}, "temperature .* got nan"),
        ({"temperature": math.inf}, "temperature .* got inf"),
        ({"top_k": -1}, "top_k from 0 to 61, got -1"),
        ({"top_k": 62}, "top_k .* got 62"),
        ({"top_p": 0.0}, r"top_p above 0 and at most 1, got 0\.0"),
        ({"top_p": 1.01}, r"top_p .* got 1\.01"),
        ({"top_p": math.nan}, "top_p .* got nan"),
        ({"guidance": -1.0}, r"guidance of 0 or more, got -1\.0"),
        ({"guidance": math.nan}, "guidance .* got nan"),
        ({"guidance": math.inf}, "guidance .* got inf"),
        ({"rank": "best"}, "rank auto, likelihood, clip, both or none, got 'best'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        validate_sampling(SamplingConfig(**settings), 61)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.0}, {"top_k": 61}, {"top_k": 0}, {"top_p": 1e-6}, {"guidance": 0.0}]
)
def test_settings_at_the_ends_of_their_ranges_are_accepted(settings):
    validate_sampling(SamplingConfig(**settings), 61)


@pytest.mark.parametrize("top_p", [5e-324, 1e-308, 1e-45, 1e-30])
def test_a_top_p_that_fp32_rounds_to_zero_keeps_the_likeliest_id(top_p):
    assert frequencies(LOGITS, top_p=top_p) == frequencies(LOGITS, top_k=1)
