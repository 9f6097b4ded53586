import pytest
import torch
from helpers import reference
from helpers.models import GRID, make_transformer
from helpers.sampling import PROMPT, SETTINGS, random_image_ids, sample

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.sampling.generate import generate_cells
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.sampling.requests import IdRequest
from dalle_mini_impl.util.errors import UserError


def cells(*rows):
    """A redraw mask from rows of "." (known) and "#"."""
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


REDRAW = {
    "lower rows": cells(".....", ".....", "#####"),
    "corner": cells(".....", "...##", "...##"),
    "holes": cells("..#..", ".#.#.", "....."),
    "the first": cells("#....", ".....", "....."),
    "the last": cells(".....", ".....", "....#"),
    "all": cells("#####", "#####", "#####"),
}


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("redraw", REDRAW)
def test_sampling_around_known_ids_equals_the_reference(position, redraw):
    transformer, stream = make_transformer(position)
    seeds = [3, 2**32 - 1]
    picture = random_image_ids()
    captions = list(PROMPT.text_ids), list(PROMPT.negative_ids)
    image_ids = sample((transformer, stream), seeds, known=KnownIds(picture, REDRAW[redraw])).image_ids
    for ids, seed in zip(image_ids, seeds, strict=True):
        expected = reference.generate(transformer, stream, captions, seed, SETTINGS, picture, REDRAW[redraw])
        assert torch.equal(ids, expected)


@pytest.mark.parametrize("guidance", [2.5, 1.0])
@pytest.mark.parametrize("redraw", REDRAW)
def test_the_log_likelihood_is_that_of_the_whole_picture(model, redraw, guidance):
    settings = SamplingConfig(temperature=0.5, top_k=7, guidance=guidance)
    known = KnownIds(random_image_ids(), REDRAW[redraw])
    generated = sample(model, [3, 5, 8], settings=settings, chunk=2, known=known)
    expected = log_likelihood(*model, PROMPT.text_ids, generated.image_ids).sum(1)
    torch.testing.assert_close(generated.log_likelihood, expected, rtol=1e-5, atol=1e-4)


def test_known_ids_that_come_first_are_run_once_for_all_candidates(model):
    transformer, _ = model
    shapes = []
    calls: list[int] = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    sample(model, range(11), chunk=5, known=KnownIds(random_image_ids(), REDRAW["corner"]), progress=calls.append)
    hook.remove()
    assert shapes[0] == (2, 8 + 8)  # prefix, then a row and three ids of the picture
    assert [tuple(shape) for shape in shapes[1:]] == [(10, 1)] * 6 + [(10, 1)] * 6 + [(2, 1)] * 6
    assert sum(calls) == 11 * 15


def test_known_rows_are_part_of_the_first_ids_that_are_yielded(model):
    picture = random_image_ids()
    transformer, stream = model
    known = KnownIds(picture, REDRAW["lower rows"])
    cells = list(generate_cells(transformer, stream, IdRequest(PROMPT, [3, 5], SETTINGS, known=known)))
    assert [ids.shape for ids in cells] == [(2, count) for count in range(11, 16)]
    assert torch.equal(cells[0][:, :10], picture[:2].flatten().expand(2, -1))


def test_each_candidate_may_have_known_ids_of_its_own(model):
    pictures = torch.stack([random_image_ids(seed) for seed in (1, 2, 3)])
    image_ids = sample(model, [3, 5, 8], known=KnownIds(pictures, REDRAW["corner"]), chunk=2).image_ids
    for index, seed in enumerate([3, 5, 8]):
        alone = sample(model, [seed], known=KnownIds(pictures[index], REDRAW["corner"])).image_ids[0]
        assert torch.equal(image_ids[index], alone)


def test_cells_are_redrawn_with_the_probability_given_and_by_each_candidates_seed(model):
    picture = random_image_ids()
    known = KnownIds(picture, REDRAW["all"], redraw_probability=0.3)
    image_ids = sample(model, list(range(101)), known=known).image_ids
    changed = image_ids != picture
    assert 0.25 < float(changed.float().mean()) < 0.3  # some cells get the id they had
    assert len(changed.flatten(1).unique(dim=0)) > 90
    assert torch.equal(sample(model, [17], known=known).image_ids[0], image_ids[17])


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            KnownIds(random_image_ids(), cells("...", "...", "..#")),
            r"grid \(3, 5\) .* got shapes \(3, 5\) and \(3, 3\)",
        ),
        (KnownIds(torch.zeros(5, 3, dtype=torch.int64), REDRAW["corner"]), r"got shapes \(5, 3\)"),
        (KnownIds(torch.zeros(2, *GRID, dtype=torch.int64), REDRAW["corner"]), "for 1 candidates"),
        (KnownIds(random_image_ids() + 61, REDRAW["corner"]), "expected image ids from 0 to 60"),
        (KnownIds(random_image_ids(), cells(".....", ".....", ".....")), "at least one cell to redraw, got none"),
        (KnownIds(random_image_ids(), REDRAW["all"], redraw_probability=0.0), r"redraw probability .* got 0\.0"),
        (KnownIds(random_image_ids(), REDRAW["all"], redraw_probability=1.5), r"redraw probability .* got 1\.5"),
    ],
)
def test_known_ids_that_do_not_fit_are_refused(model, known, message):
    with pytest.raises(UserError, match=message):
        sample(model, [1], known=known)
