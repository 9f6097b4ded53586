import copy

import pytest
import torch
from helpers import reference
from helpers.models import GRID, make_transformer

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import Prompt, candidates_to_keep, generate, generate_rows
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.util.errors import UserError

PROMPT = Prompt((5, 300, 17), (41, 2))
SETTINGS = SamplingConfig(temperature=0.9, top_k=31, top_p=0.95, guidance=2.5)
POSITIONS = ["rope", "learned"]


@pytest.fixture(scope="module")
def rope():
    return make_transformer("rope")


def draw(model, seeds, prompt=PROMPT, settings=SETTINGS, **rest):
    return generate(*model, prompt, seeds, settings, **rest).image_ids


# --- against the slow reference: uncached, unbatched, unchunked


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    ("settings", "prompt", "seeds"),
    [
        (SETTINGS, PROMPT, [3, 2**32 - 1]),
        (SETTINGS, Prompt((5, 300, 17)), [5]),
        (SamplingConfig(temperature=1.0, guidance=1.0), PROMPT, [7]),
        (SamplingConfig(temperature=1.0, guidance=1.0), Prompt(()), [11]),
        (SamplingConfig(temperature=0.0, guidance=4.0), PROMPT, [0]),
        (SamplingConfig(temperature=0.7, top_k=5, guidance=0.0), PROMPT, [2]),
    ],
    ids=["all", "no negative", "off", "empty", "greedy", "null"],
)
def test_the_reference_agrees(position, settings, prompt, seeds):
    transformer, stream = make_transformer(position)
    drawn = generate(transformer, stream, prompt, seeds, settings).image_ids
    captions = list(prompt.text_ids), list(prompt.negative_ids)
    for ids, seed in zip(drawn, seeds, strict=True):
        assert torch.equal(ids, reference.generate(transformer, stream, captions, seed, settings))


@pytest.mark.parametrize("chunk", [2, 64])
def test_the_likelihoods_are_the_models_own_whatever_the_settings(rope, chunk):
    guided = generate(*rope, PROMPT, [3, 5, 8], SETTINGS, chunk=chunk)
    expected, negative = (
        log_likelihood(*rope, ids, guided.image_ids).sum(1) for ids in (PROMPT.text_ids, PROMPT.negative_ids)
    )
    torch.testing.assert_close(guided.log_likelihood, expected, rtol=1e-5, atol=1e-4)
    assert float((expected - negative).abs().min()) > 1e-2  # or a swap would not show
    plain = generate(*rope, PROMPT, [3, 5, 8], SamplingConfig(temperature=0.3, guidance=1.0), chunk=chunk)
    expected = log_likelihood(*rope, PROMPT.text_ids, plain.image_ids).sum(1)
    torch.testing.assert_close(plain.log_likelihood, expected, rtol=1e-5, atol=1e-4)


def test_no_seeds_are_refused(rope):
    with pytest.raises(UserError, match="expected at least one seed, got none; give one per candidate"):
        draw(rope, [])


# --- a candidate depends on its seed alone


def test_a_candidate_does_not_depend_on_the_others(rope):
    seeds = list(range(100, 137))
    whole = draw(rope, seeds)
    assert whole.shape == (37, *GRID)
    assert len(whole.flatten(1).unique(dim=0)) == 37  # the seeds do matter
    for number in (0, 17, 36):
        assert torch.equal(draw(rope, [seeds[number]])[0], whole[number])
    for chunk in (3, 7):
        assert torch.equal(draw(rope, seeds, chunk=chunk), whole)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(draw(rope, [seeds[number] for number in order]), whole[order])


def test_equal_seeds_give_equal_pictures(rope):
    drawn = draw(rope, [5, 11, 5])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_greedy_candidates_are_all_alike(rope):
    drawn = draw(rope, [1, 2, 3], settings=SamplingConfig(temperature=0.0))
    assert len(drawn.flatten(1).unique(dim=0)) == 1


def test_the_global_random_state_has_no_say_and_no_loss(rope):
    torch.manual_seed(0)
    first, state = draw(rope, [7]), torch.get_rng_state()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(draw(rope, [7]), first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


# --- what may be drawn


def test_only_image_ids_are_drawn():
    transformer, stream = make_transformer()
    with torch.no_grad():  # a model that would rather go on with text, at every position
        transformer.head.weight[: stream.image_offset] *= 1000
    settings = SamplingConfig(temperature=5.0, guidance=1.0)
    drawn = generate(transformer, stream, PROMPT, range(101), settings).image_ids
    assert drawn.dtype == torch.int64
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < stream.config.image_vocab
    assert len(drawn.unique()) == stream.config.image_vocab  # none is left out either


def test_the_model_sees_image_ids_only_at_image_positions(rope):
    transformer, stream = rope
    seen = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    draw(rope, [1, 2, 3])
    hook.remove()
    prefix, steps = seen[0], seen[1:]
    assert torch.equal(prefix, stream.prefix([PROMPT.text_ids, PROMPT.negative_ids]))
    assert len(steps) == stream.image_length - 1
    for ids in steps:
        assert ids.shape == (6, 1)  # with and without caption in one pass
        assert stream.image_offset <= int(ids.min()) <= int(ids.max()) < stream.vocab_size
        assert torch.equal(ids[:3], ids[3:])


@pytest.mark.parametrize(("guidance", "rows"), [(2.5, 2), (1.0, 1)])
def test_the_prompt_is_run_once_for_all_candidates(rope, guidance, rows):
    transformer, _ = rope
    seen = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    draw(rope, range(11), settings=SamplingConfig(guidance=guidance), chunk=5)
    hook.remove()
    assert seen[0] == (rows, 8)
    assert [shape[1] for shape in seen[1:]] == [1] * 3 * 14
    assert [shape[0] for shape in seen[1::14]] == [5 * rows, 5 * rows, rows]


# --- guidance


def test_guidance_1_is_the_conditional_model_alone(rope):
    off = SamplingConfig(temperature=0.9, top_k=31, guidance=1.0)
    plain = draw(rope, [1, 2, 3], Prompt(PROMPT.text_ids), off)
    assert torch.equal(draw(rope, [1, 2, 3], Prompt(PROMPT.text_ids, (9, 9, 9)), off), plain)
    # as a limit too: nearly 1 is nearly no guidance
    nearly = SamplingConfig(temperature=0.9, top_k=31, guidance=1.0 + 1e-7)
    assert torch.equal(draw(rope, [1, 2, 3], PROMPT, nearly), plain)


def test_guidance_0_is_the_null_model_alone(rope):
    null = SamplingConfig(temperature=0.9, top_k=31, guidance=0.0)
    off = SamplingConfig(temperature=0.9, top_k=31, guidance=1.0)
    expected = draw(rope, [1, 2, 3], Prompt(PROMPT.negative_ids), off)
    assert torch.equal(draw(rope, [1, 2, 3], PROMPT, null), expected)


def test_prompt_negative_and_guidance_all_matter(rope):
    first = draw(rope, [1, 2, 3])
    for other in (
        draw(rope, [1, 2, 3], Prompt((5, 300, 18), PROMPT.negative_ids)),
        draw(rope, [1, 2, 3], Prompt(PROMPT.text_ids)),
        draw(rope, [1, 2, 3], settings=SamplingConfig(temperature=0.9, top_k=31, top_p=0.95, guidance=2.0)),
    ):
        assert not torch.equal(first, other)


def test_guidance_against_the_prompt_itself_is_no_guidance(rope):
    off = SamplingConfig(temperature=0.9, guidance=1.0)
    on = SamplingConfig(temperature=0.9, guidance=7.0)
    prompt = Prompt(PROMPT.text_ids, PROMPT.text_ids)
    assert torch.equal(draw(rope, [1, 2, 3], prompt, on), draw(rope, [1, 2, 3], prompt, off))


# --- what must not change


def test_nothing_that_is_passed_in_is_changed():
    transformer, stream = make_transformer()
    text_ids, negative_ids, seeds = [5, 300], [41], [1, 2, 3]
    state = copy.deepcopy(transformer.state_dict())
    attributes = set(vars(transformer)), set(vars(stream))
    drawn = generate(transformer, stream, Prompt(text_ids, negative_ids), seeds, SETTINGS, chunk=2).image_ids
    log_likelihood(transformer, stream, text_ids, drawn)
    assert (text_ids, negative_ids, seeds) == ([5, 300], [41], [1, 2, 3])
    assert all(torch.equal(value, state[name]) for name, value in transformer.state_dict().items())
    assert (set(vars(transformer)), set(vars(stream))) == attributes


def test_progress_counts_every_id(rope):
    told = []
    draw(rope, range(7), chunk=3, progress=told.append)
    assert sum(told) == 7 * 15
    assert told[:15] == [3] * 15
    assert told[-1] == 1


# --- errors


def test_settings_are_checked_against_the_image_ids(rope):
    with pytest.raises(UserError, match=r"expected top_k from 0 to 61, got 62"):
        draw(rope, [1], settings=SamplingConfig(top_k=62))


def test_a_caption_that_is_too_long_is_refused(rope):
    with pytest.raises(UserError, match="expected captions of up to 7 text ids, got 8"):
        draw(rope, [1], Prompt((1,) * 8))
    with pytest.raises(UserError, match="got 8"):
        draw(rope, [1], Prompt((1,), (1,) * 8))


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_chunk_holds_at_least_one_candidate(rope, chunk):
    with pytest.raises(UserError, match=f"chunk of at least 1 candidate, got {chunk}"):
        draw(rope, [1], chunk=chunk)


# --- log-likelihood


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("caption", [[5, 300, 17], []])
def test_log_likelihood_equals_brute_force(position, caption):
    transformer, stream = make_transformer(position)
    image_ids = torch.randint(61, (3, *GRID), generator=torch.Generator().manual_seed(0))
    scores = log_likelihood(transformer, stream, caption, image_ids)
    assert scores.shape == (3, 15)
    assert float(scores.max()) <= 0
    for row, ids in zip(scores, image_ids, strict=True):
        expected = reference.log_likelihood(transformer, stream, caption, ids.flatten().tolist())
        assert row.tolist() == pytest.approx(expected, abs=2e-5)


def test_likelihoods_of_all_next_ids_sum_to_one(rope):
    transformer, stream = rope
    image_ids = torch.zeros(61, *GRID, dtype=torch.int64)
    image_ids[:, -1, -1] = torch.arange(61)
    scores = log_likelihood(transformer, stream, [5], image_ids)
    assert float(scores[:, -1].exp().sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scores[:, :-1], scores[:1, :-1].expand(61, -1), atol=1e-5, rtol=0)


def test_what_greedy_draws_is_likeliest(rope):
    transformer, stream = rope
    greedy = draw(rope, [0], settings=SamplingConfig(temperature=0.0, guidance=1.0))
    best = log_likelihood(transformer, stream, PROMPT.text_ids, greedy)[0]
    for place in (0, 7, 14):
        others = greedy.flatten(1).repeat(61, 1)
        others[:, place] = torch.arange(61)
        scores = log_likelihood(transformer, stream, PROMPT.text_ids, others.unflatten(1, GRID))
        assert float(scores[:, place].max()) == pytest.approx(float(best[place]), abs=1e-5)


def test_likelihood_of_a_wrong_grid_is_refused(rope):
    transformer, stream = rope
    for shape in ((1, 5, 3), (1, 3, 6)):
        with pytest.raises(UserError, match="grid"):
            log_likelihood(transformer, stream, [5], torch.zeros(shape, dtype=torch.int64))


def test_likelihood_of_an_unknown_id_is_refused(rope):
    transformer, stream = rope
    for number in (-1, 61):
        with pytest.raises(UserError, match=f"{number}"):
            log_likelihood(transformer, stream, [5], torch.full((1, *GRID), number))


def test_the_stream_is_what_the_model_was_built_for(rope):
    transformer, stream = rope
    assert isinstance(stream, Stream)
    assert transformer.max_length == stream.length


# --- pruning


@pytest.mark.parametrize("guidance", [2.5, 1.0])
def test_pruned_candidates_are_the_unlikely_ones_and_the_others_stay_as_they_were(rope, guidance):
    settings, seeds = SamplingConfig(temperature=0.9, guidance=guidance), [3, 5, 8, 13, 21, 34, 55]
    whole = generate(*rope, PROMPT, seeds, settings)
    so_far = log_likelihood(*rope, PROMPT.text_ids, whole.image_ids).cumsum(1)
    alive = list(range(7))
    for done, known in ((3, 4), (7, 2)):  # of 15 ids, after 3/16 and 7/16 of them
        best = sorted(alive, key=lambda number: -float(so_far[number, done - 1]))
        alive = sorted(best[:known])
    pruned = generate(*rope, PROMPT, seeds, settings, prune_to=1)
    assert pruned.indices.tolist() == alive != [0, 1]
    assert torch.equal(pruned.image_ids, whole.image_ids[alive])
    torch.testing.assert_close(pruned.log_likelihood, whole.log_likelihood[alive], rtol=1e-5, atol=1e-4)


def test_every_chunk_is_pruned_by_itself(rope):
    whole = generate(*rope, PROMPT, list(range(10)), SETTINGS, chunk=5, prune_to=1)
    parts = [generate(*rope, PROMPT, list(range(start, start + 5)), SETTINGS, prune_to=1) for start in (0, 5)]
    assert whole.indices.tolist() == [*parts[0].indices.tolist(), *(parts[1].indices + 5).tolist()]
    assert torch.equal(whole.image_ids, torch.cat([part.image_ids for part in parts]))
    assert len(whole.indices) == 4  # of five 3, of these 2


@pytest.mark.parametrize(("least", "known"), [(1, 2), (3, 3), (5, 5), (7, 7), (9, 7)])
def test_pruning_leaves_as_many_as_are_wanted(rope, least, known):
    calls = []
    drawn = generate(*rope, PROMPT, list(range(7)), SETTINGS, progress=calls.append, prune_to=least)
    assert len(drawn.indices) == known
    assert sum(calls) == 7 * 15  # what will never be drawn counts as done


def test_of_equally_likely_candidates_the_first_go_on():
    assert candidates_to_keep(torch.tensor([-3.0, -2, -2, -3, -2]), 1, 7, 16).tolist() == [1, 2, 4]
    assert candidates_to_keep(torch.tensor([-3.0, -2, -2, -3, -2]), 4, 3, 16).tolist() == [0, 1, 2, 4]
    for prune_to, done in ((5, 7), (None, 7), (1, 8)):
        assert candidates_to_keep(torch.zeros(5), prune_to, done, 16) is None


# --- kept ids


def picture(seed=1):
    return torch.randint(61, GRID, generator=torch.Generator().manual_seed(seed))


def places(*rows):
    """Places to redraw, from rows of "." (kept) and "#"."""
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


MASKS = {
    "lower rows": places(".....", ".....", "#####"),
    "corner": places(".....", "...##", "...##"),
    "holes": places("..#..", ".#.#.", "....."),
    "the first": places("#....", ".....", "....."),
    "the last": places(".....", ".....", "....#"),
    "all": places("#####", "#####", "#####"),
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_the_reference_agrees_about_what_is_drawn_around_kept_ids(position, mask):
    model, seeds = make_transformer(position), [3, 2**32 - 1]
    known = KnownIds(picture(), MASKS[mask])
    captions = list(PROMPT.text_ids), list(PROMPT.negative_ids)
    for ids, seed in zip(draw(model, seeds, known=known), seeds, strict=True):
        assert torch.equal(ids, reference.generate(*model, captions, seed, SETTINGS, picture(), MASKS[mask]))


@pytest.mark.parametrize("guidance", [2.5, 1.0])
@pytest.mark.parametrize("mask", MASKS)
def test_kept_ids_count_in_the_likelihood(rope, mask, guidance):
    settings = SamplingConfig(temperature=0.5, top_k=7, guidance=guidance)
    drawn = generate(*rope, PROMPT, [3, 5, 8], settings, chunk=2, known=KnownIds(picture(), MASKS[mask]))
    expected = log_likelihood(*rope, PROMPT.text_ids, drawn.image_ids).sum(1)
    torch.testing.assert_close(drawn.log_likelihood, expected, rtol=1e-5, atol=1e-4)


def test_what_is_kept_first_is_run_once_for_all_candidates(rope):
    transformer, _ = rope
    seen, told = [], []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    draw(rope, range(11), chunk=5, known=KnownIds(picture(), MASKS["corner"]), progress=told.append)
    hook.remove()
    assert seen[0] == (2, 8 + 8)  # prefix, and a row and three ids of the picture
    assert [tuple(shape) for shape in seen[1:]] == [(10, 1)] * 6 + [(10, 1)] * 6 + [(2, 1)] * 6
    assert sum(told) == 11 * 15


def test_rows_that_are_kept_come_first_in_every_preview(rope):
    known = KnownIds(picture(), MASKS["lower rows"])
    rows = list(generate_rows(*rope, PROMPT, [3, 5], SETTINGS, known=known))
    assert [part.shape for part in rows] == [(2, 3, 5)]
    assert torch.equal(rows[0][:, :2], picture()[:2].expand(2, -1, -1))


def test_pruning_with_kept_ids_counts_what_is_drawn(rope):
    seeds, known = [3, 5, 8, 13, 21, 34, 55], KnownIds(picture(), MASKS["corner"])
    whole = draw(rope, seeds, known=known)
    so_far = log_likelihood(*rope, PROMPT.text_ids, whole).cumsum(1)
    alive = list(range(7))
    for done, left in ((1, 4), (3, 2)):  # of the seven ids that follow the first eight, after 3/16 and 7/16 of them
        best = sorted(alive, key=lambda number: -float(so_far[number, 8 + done - 1]))
        alive = sorted(best[:left])
    told = []
    pruned = generate(*rope, PROMPT, seeds, SETTINGS, prune_to=1, known=known, progress=told.append)
    assert pruned.indices.tolist() == alive != [0, 1]
    assert torch.equal(pruned.image_ids, whole[alive])
    assert sum(told) == 7 * 15


def test_each_candidate_may_keep_a_picture_of_its_own(rope):
    pictures = torch.stack([picture(seed) for seed in (1, 2, 3)])
    drawn = draw(rope, [3, 5, 8], known=KnownIds(pictures, MASKS["corner"]), chunk=2)
    for number, seed in enumerate([3, 5, 8]):
        assert torch.equal(drawn[number], draw(rope, [seed], known=KnownIds(pictures[number], MASKS["corner"]))[0])


def test_a_share_of_the_places_is_redrawn_by_each_candidates_seed(rope):
    seeds = list(range(101))
    drawn = draw(rope, seeds, known=KnownIds(picture(), MASKS["all"], redraw_probability=0.3))
    changed = drawn != picture()
    assert 0.25 < float(changed.float().mean()) < 0.3  # some are drawn as they were
    assert len(changed.flatten(1).unique(dim=0)) > 90
    assert torch.equal(draw(rope, [17], known=KnownIds(picture(), MASKS["all"], redraw_probability=0.3))[0], drawn[17])


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (KnownIds(picture(), places("...", "...", "..#")), r"grid \(3, 5\) .* got shapes \(3, 5\) and \(3, 3\)"),
        (KnownIds(torch.zeros(5, 3, dtype=torch.int64), MASKS["corner"]), r"got shapes \(5, 3\)"),
        (KnownIds(torch.zeros(2, *GRID, dtype=torch.int64), MASKS["corner"]), "for 1 candidates"),
        (KnownIds(picture() + 61, MASKS["corner"]), "expected image ids from 0 to 60"),
        (KnownIds(picture(), places(".....", ".....", ".....")), "at least one cell to redraw, got none"),
        (KnownIds(picture(), MASKS["all"], redraw_probability=0.0), r"got 0\.0"),
        (KnownIds(picture(), MASKS["all"], redraw_probability=1.5), r"got 1\.5"),
    ],
)
def test_kept_pictures_that_do_not_fit_are_refused(rope, known, message):
    with pytest.raises(UserError, match=message):
        draw(rope, [1], known=known)
