import math

import pytest
import torch
from helpers.models import SCORER
from helpers.pictures import block_picture
from torch.nn import functional as F

from dalle_mini_impl.painting.painter import weighted_distances
from dalle_mini_impl.painting.targets import Target, embed_targets, parse_noise, parse_targets
from dalle_mini_impl.util.errors import UserError


def test_prompts_are_parsed_into_targets():
    targets = parse_targets(r" a fox:1.5 | photo.jpg:0.5|text:-0.3:-1 | a \| b")
    assert [target.metadata() for target in targets] == [
        {"text": "a fox", "weight": 1.5},
        {"picture": "photo.jpg", "weight": 0.5},
        {"text": "text", "weight": -0.3, "stop": -1.0},
        {"text": "a | b", "weight": 1.0},
    ]
    assert parse_noise("7:0.25").metadata() == {"noise": 7, "weight": 0.25}
    assert parse_noise("7").metadata() == {"noise": 7, "weight": 1.0}
    assert Target(block_picture()).metadata() == {"picture": "given", "weight": 1.0}


def test_targets_are_embedded_by_the_scorer(scorer, tmp_path):
    block_picture(3).save(tmp_path / "a.png")
    contents = ("a cat", block_picture(3), tmp_path / "a.png")
    text, image, path = (Target(content).embed(scorer) for content in contents)
    assert torch.equal(text, scorer.embed_texts(["a cat"])[0])
    assert torch.equal(image, scorer.embed_images([block_picture(3)])[0])
    assert torch.equal(image, path)
    noise = Target(5).embed(scorer)
    assert noise.shape == text.shape
    assert float(noise.norm()) == pytest.approx(1)
    assert torch.equal(noise, Target(5).embed(scorer))
    assert not torch.equal(noise, Target(6).embed(scorer))


def test_weighted_distances_are_half_squared_angles_times_weights(scorer):
    targets = embed_targets([Target("a cat", 2.0), Target("snow", -0.5), Target("a tree", 1.0, stop=100.0)], scorer)
    embed = F.normalize(torch.randn(7, SCORER.embed_dim), dim=1).requires_grad_()
    distances = weighted_distances(embed, targets)
    angles = (embed @ targets.embed.T).clamp(-1, 1).acos() ** 2 / 2
    torch.testing.assert_close(distances, angles * torch.tensor([2.0, -0.5, 1.0]), rtol=1e-4, atol=1e-5)
    distances[:, 2].sum().backward()
    assert not embed.grad.any()  # every distance to the last target is below its stop


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_targets("a fox | | snow"), "expected a text, .* got an empty prompt"),
        (lambda: parse_targets(""), "got an empty prompt"),
        (lambda: Target("a", math.inf), "expected numbers, got weight inf and stop -inf"),
        (lambda: Target("a", 1.0, math.nan), r"got weight 1\.0 and stop nan"),
        (lambda: parse_noise("a:1"), "expected a noise prompt SEED or SEED:WEIGHT, got 'a:1'"),
        (lambda: parse_noise("-1"), "got '-1'"),
        (lambda: parse_noise("7.png"), r"got '7\.png'"),
    ],
)
def test_malformed_targets_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
