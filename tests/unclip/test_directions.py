"""Ways through the space of embeddings."""

import math

import pytest
import torch
from torch.nn import functional as F

from dalle_mini_impl.unclip.directions import slerp, text_difference, with_first_components
from dalle_mini_impl.util.errors import UserError


def embeddings(count, width=12, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def angle(a, b):
    return math.acos(float((a.double() @ b.double()).clamp(-1, 1)))


@pytest.mark.parametrize("share", [0, 0.25, 0.6, 1])
def test_a_rotation_goes_a_share_of_the_angle_in_the_plane_of_both(share):
    start, end = embeddings(2)
    found = slerp(start, end, share)
    assert angle(start, found) == pytest.approx(share * angle(start, end), abs=1e-3)
    assert angle(found, end) == pytest.approx((1 - share) * angle(start, end), abs=1e-3)
    assert float(found.norm()) == pytest.approx(1)


def test_a_rotation_between_nearly_equal_embeddings_is_finite_and_opposite_ones_are_refused():
    start = embeddings(1)[0]
    near = F.normalize(start + 1e-6 * embeddings(1, seed=1)[0], dim=0)
    for end in (start, near):
        torch.testing.assert_close(slerp(start, end, 0.5), start, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="expected two embeddings that are not opposite"):
        slerp(start, -start, 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_out_of_range_are_refused(share):
    start, end = embeddings(2)
    with pytest.raises(UserError, match="expected a share of the way from 0 to 1"):
        slerp(start, end, share)


def test_a_text_difference_moves_from_one_text_to_the_other():
    picture, source, target = embeddings(3)
    direction = text_difference(source, target)
    assert float(direction.norm()) == pytest.approx(1)
    before, after = picture, slerp(picture, direction, 0.4)
    assert after @ (target - source) > before @ (target - source)
    with pytest.raises(UserError, match="expected two texts that the scorer tells apart"):
        text_difference(source, source.clone())


def test_more_principal_components_approach_the_embedding_and_all_of_them_are_it():
    others = F.normalize(embeddings(300) * 0.7 ** torch.arange(12) + 0.2, dim=-1)
    kept = with_first_components(others[3], others, [0, 2, 4, 8, 12])
    cosines = (kept @ others[3]).tolist()
    assert cosines == sorted(cosines)
    assert cosines[-1] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(kept[0], F.normalize(others.mean(0), dim=0))
    for counts in ([13], [-1], []):
        with pytest.raises(UserError, match="expected numbers of components from 0 to 12"):
            with_first_components(others[0], others, counts)
    with pytest.raises(UserError, match="expected at least 2 pictures"):
        with_first_components(others[0], others[:1], [2])
