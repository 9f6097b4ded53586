import math

import pytest
import torch
from helpers.contrastive import make_batch, make_clip
from torch import distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from dalle_mini_impl.train.losses.contrastive import at_chance, chance_level, contrastive_loss, gather_with_gradient

PROCESSES = 2


def test_loss_of_two_pairs_by_hand():
    # Cosines are [[.6, 1], [.8, 0]]; lengths and a scale of 2 are put on top.
    image_embed = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    text_embed = torch.tensor([[0.6, 0.8], [7.0, 0.0]])
    e = math.exp
    pictures = (math.log(e(1.2) + e(2)) - 1.2) + (math.log(e(1.6) + e(0)) - 0)
    captions = (math.log(e(1.2) + e(1.6)) - 1.2) + (math.log(e(2) + e(0)) - 0)
    loss = contrastive_loss(image_embed, text_embed, torch.tensor(math.log(2)))
    torch.testing.assert_close(loss, torch.tensor((pictures / 2 + captions / 2) / 2))


def test_groups_share_the_target():
    torch.manual_seed(0)
    image_embed, text_embed = torch.randn(3, 5), torch.randn(3, 5)
    same = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    cosines = [[float(torch.cosine_similarity(i, t, dim=0)) for t in text_embed] for i in image_embed]
    expected = 0.0
    for rows in (cosines, list(zip(*cosines, strict=True))):
        for row, weights in zip(rows, same, strict=True):
            total = math.log(sum(math.exp(11 * c) for c in row))
            costs = [w * (total - 11 * c) for c, w in zip(row, weights, strict=True)]
            expected += sum(costs) / sum(weights) / 6
    loss = contrastive_loss(image_embed, text_embed, torch.tensor(math.log(11)), groups=torch.tensor([7, 2, 7]))
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_distinct_groups_change_nothing():
    torch.manual_seed(1)
    image_embed, text_embed, scale = torch.randn(7, 5), torch.randn(7, 5), torch.tensor(2.0)
    grouped = contrastive_loss(image_embed, text_embed, scale, groups=torch.arange(7) * 3)
    torch.testing.assert_close(grouped, contrastive_loss(image_embed, text_embed, scale))


def test_loss_is_fp32_inside_autocast():
    torch.manual_seed(2)
    image_embed, text_embed, scale = torch.randn(7, 5), torch.randn(7, 5), torch.tensor(4.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(image_embed, text_embed, scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, contrastive_loss(image_embed, text_embed, scale), rtol=0, atol=0)


def test_chance_is_where_nothing_is_told_apart():
    loss = contrastive_loss(torch.ones(7, 5), torch.ones(7, 5), torch.tensor(3.0))
    assert float(loss) == pytest.approx(math.log(7))
    assert chance_level(7) == pytest.approx(math.log(7))
    assert at_chance(float(loss), 7)
    assert not at_chance(0.9 * math.log(7), 7)
    assert not at_chance(float(loss), 11)


def test_sigmoid_loss_of_two_pairs_by_hand():
    image_embed = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    text_embed = torch.tensor([[0.6, 0.8], [7.0, 0.0]])

    def cost(logit):
        return math.log(1 + math.exp(-logit))

    scale, bias = torch.tensor(math.log(2)), torch.tensor(-0.7)
    expected = (cost(1.2 - 0.7) + cost(0.7 - 2) + cost(0.7 - 1.6) + cost(-0.7)) / 2
    torch.testing.assert_close(contrastive_loss(image_embed, text_embed, scale, bias), torch.tensor(expected))
    alike = (cost(1.2 - 0.7) + cost(2 - 0.7) + cost(1.6 - 0.7) + cost(-0.7)) / 2
    loss = contrastive_loss(image_embed, text_embed, scale, bias, torch.tensor([5, 5]))
    torch.testing.assert_close(loss, torch.tensor(alike))


def test_pictures_without_captions_are_what_captions_must_not_choose():
    image_embed, text_embed = torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.tensor([[0.6, 0.8], [7.0, 0.0]])
    unmatched, scale, e = torch.tensor([[0.0, -2.0]]), torch.tensor(math.log(2)), math.exp  # cosines -.8 and 0
    pictures = (math.log(e(1.2) + e(2)) - 1.2) + (math.log(e(1.6) + e(0)) - 0)
    captions = (math.log(e(1.2) + e(1.6) + e(-1.6)) - 1.2) + (math.log(e(2) + e(0) + e(0)) - 0)
    loss = contrastive_loss(image_embed, text_embed, scale, unmatched=unmatched)
    torch.testing.assert_close(loss, torch.tensor((pictures / 2 + captions / 2) / 2))
    bias = torch.tensor(-0.7)
    matched = contrastive_loss(image_embed, text_embed, scale, bias)
    extra = (math.log(1 + e(-1.6 - 0.7)) + math.log(1 + e(-0.7))) / 2
    loss = contrastive_loss(image_embed, text_embed, scale, bias, unmatched=unmatched)
    torch.testing.assert_close(loss, matched + extra)


def test_chance_of_the_sigmoid_loss():
    # The best that can be said without telling anything apart is that one pair in seven belongs together.
    bias = torch.tensor(math.log(1 / 6), requires_grad=True)
    loss = contrastive_loss(torch.zeros(7, 5), torch.zeros(7, 5), torch.tensor(1.0), bias)
    loss.backward()
    assert float(bias.grad) == pytest.approx(0, abs=1e-6)
    assert float(loss.detach()) == pytest.approx(chance_level(7, sigmoid=True))
    assert at_chance(float(loss.detach()), 7, sigmoid=True)
    assert not at_chance(0.9 * float(loss.detach()), 7, sigmoid=True)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_chance_beside_pictures_without_captions(sigmoid):
    same, others, bias = torch.ones(7, 5), torch.ones(4, 5), torch.tensor(math.log(1 / 10)) if sigmoid else None
    # Cosines of 1 times a scale of nearly 0, so that the bias alone counts.
    loss = float(contrastive_loss(same, same, torch.tensor(-30.0), bias, unmatched=others))
    assert loss == pytest.approx(chance_level(7, sigmoid, 4))
    assert loss > chance_level(7, sigmoid) + 0.1
    assert at_chance(loss, 7, sigmoid, 4)
    assert not at_chance(chance_level(7, sigmoid), 7, sigmoid, 4)


def test_gathering_in_one_process_changes_nothing():
    features = torch.randn(3, 5)
    assert gather_with_gradient(features) is features


def train_part(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    clip = make_clip()
    pixels, text_ids, groups = (part.chunk(PROCESSES)[rank] for part in make_batch())
    wrapped = DistributedDataParallel(clip)  # a name of its own: it averages only as long as it lives
    image_embed, text_embed, scale, _ = wrapped(pixels, text_ids)
    parts = [gather_with_gradient(part) for part in (image_embed, text_embed)]
    loss = contrastive_loss(*parts, scale, groups=gather_with_gradient(groups))
    loss.backward()
    torch.save((loss.detach(), {n: p.grad for n, p in clip.named_parameters()}), f"{folder}/{rank}.pt")
    del wrapped
    dist.barrier()  # a process whose group ends while another one still uses it is aborted now and then
    dist.destroy_process_group()


def test_two_processes_get_the_gradient_of_one(tmp_path):
    clip = make_clip()
    pixels, text_ids, groups = make_batch()
    loss = contrastive_loss(*clip(pixels, text_ids), groups)
    loss.backward()
    multiprocessing.spawn(train_part, (str(tmp_path),), nprocs=PROCESSES)
    for rank in range(PROCESSES):
        part_loss, grads = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(part_loss, loss.detach())
        for name, parameter in clip.named_parameters():
            assert parameter.grad is not None
            assert (grads[name] - parameter.grad).norm() < 1e-5 * parameter.grad.norm(), name
