import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from dalle_mini_impl.cli.classify import classify
from dalle_mini_impl.config import ScorerConfig
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.images import to_pixels
from dalle_mini_impl.scorer import CLIP, Preprocess, Scorer, build_clip, contrastive_loss

SIZE, LENGTH, PAD, EOS = 21, 13, 5, 3


class LetterTokenizer:
    """One id per letter; pad and end-of-text are neither the lowest nor the highest ids."""

    vocab_size, pad_id, eos_id = 37, PAD, EOS

    def encode(self, text):
        return [6 + ord(letter) % 31 for letter in text]

    def encode_batch(self, texts, length, end=True):
        rows = torch.full((len(texts), length), self.pad_id)
        for row, text in zip(rows, texts, strict=True):
            text_ids = [*self.encode(text)[: length - 1], self.eos_id]
            row[: len(text_ids)] = torch.tensor(text_ids)
        return rows


class Compass(nn.Module):
    """Points a picture where its red value says and a text where its first letter says, in the plane."""

    embed_dim = 2

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(5)))

    def encode_image(self, pixels):
        angle = pixels[:, 0, 0, 0]
        return 7 * torch.stack((angle.cos(), angle.sin()), dim=1)

    def encode_text(self, text_ids):
        angle = (text_ids[:, 0] == LetterTokenizer().encode("b")[0]) * (math.pi / 2)
        return 0.1 * torch.stack((angle.cos(), angle.sin()), dim=1)


def make_clip(**changes):
    torch.manual_seed(0)
    shape = {"image_size": SIZE, "patch_size": 7, "n_embd": 22, "n_head": 2, "embed_dim": 17}
    shape |= {"image_layers": 2, "text_layers": 3, "text_vocab": 37, "text_length": LENGTH}
    return CLIP(**(shape | {"pad_id": PAD, "eos_id": EOS} | changes))


def make_scorer(model=None, **settings):
    return Scorer(model or make_clip(), LetterTokenizer(), Preprocess(SIZE), LENGTH, **settings)


def make_pictures(count, size=(SIZE, SIZE)):
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (count, size[1], size[0], 3), dtype=torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def make_ids(*rows, width=LENGTH):
    return torch.tensor([[*row, EOS, *[PAD] * (width - 1 - len(row))] for row in rows])


# --- model


def test_padding_changes_nothing():
    clip = make_clip()
    short, long = [7, 36, 8], [9, 10, 11, 12, 35, 13, 14]
    together = clip.encode_text(make_ids(short, long))
    torch.testing.assert_close(together[:1], clip.encode_text(make_ids(short, width=4)))
    torch.testing.assert_close(together[1:], clip.encode_text(make_ids(long, width=11)))
    torch.testing.assert_close(together, clip.encode_text(make_ids(short, long, width=29)))


def test_text_is_read_up_to_end_of_text_and_no_further():
    clip = make_clip()
    text_ids = torch.tensor([[7, 36, 8, EOS, 9, 10], [11, 12, 13, 14, 15, EOS]])
    embed = clip.encode_text(text_ids)
    assert embed.shape == (2, 17)
    for position in range(6):
        changed = text_ids.clone()
        changed[0, position] = 20 if position != 3 else 36
        if position == 3:
            changed[0, 4] = EOS
        same = torch.allclose(clip.encode_text(changed)[0], embed[0], atol=1e-5)
        assert same == (position > 3), position
        torch.testing.assert_close(clip.encode_text(changed)[1], embed[1])


def test_text_is_pooled_at_end_of_text():
    # Without blocks, positions do not mix: only what stands at the pooled one can be seen.
    clip = make_clip(text_layers=0)
    embed = clip.encode_text(make_ids([7, 36], [35, 8], [7, 36, 9]))
    tower = clip.text_tower
    expected = tower.project(tower.norm(tower.tokens.weight[EOS] + tower.positions[[2, 2, 3]]))
    torch.testing.assert_close(embed, expected)


def test_text_tower_knows_word_order():
    embed = make_clip().encode_text(make_ids([7, 8, 9], [9, 8, 7]))
    assert not torch.allclose(embed[0], embed[1], atol=1e-4)


def test_image_tower_sees_every_patch_and_its_place():
    clip = make_clip()
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    seen = [clip.encode_image(pixels)]
    for row in range(0, SIZE, 7):
        for column in range(0, SIZE, 7):
            changed = pixels.clone()
            changed[:, :, row : row + 7, column : column + 7] = 1
            seen.append(clip.encode_image(changed))
    distances = torch.pdist(torch.cat(seen))
    assert len(seen) == 10
    assert distances.min() > 1e-4


def test_all_parameters_learn_under_bf16():
    clip = make_clip()
    with torch.autocast("cpu", torch.bfloat16):
        image_embed, text_embed, scale = clip(torch.randn(3, 3, SIZE, SIZE), make_ids([7, 8], [9], [10, 11, 12]))
    contrastive_loss(image_embed, text_embed, scale).backward()
    assert image_embed.dtype == torch.bfloat16
    for name, parameter in clip.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_logit_scale_starts_at_paper_value_and_is_clamped():
    clip = make_clip()
    assert clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    for wild, kept in ((9.0, math.log(100)), (-2.0, 0.0), (1.5, 1.5)):
        nn.init.constant_(clip.logit_scale, wild)
        clip.clamp_logit_scale()
        assert clip.logit_scale.item() == pytest.approx(kept)


def test_overfits_one_batch():
    clip = make_clip()
    pixels = torch.rand(7, 3, SIZE, SIZE) * 2 - 1
    text_ids = make_ids(*([int(i) for i in torch.randint(6, 37, (5,))] for _ in range(7)))
    optimizer = torch.optim.AdamW(clip.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = contrastive_loss(*clip(pixels, text_ids))
        loss.backward()
        optimizer.step()
        clip.clamp_logit_scale()
    cosines = clip.encode_image(pixels) @ nn.functional.normalize(clip.encode_text(text_ids)).T
    assert cosines.argmax(dim=1).tolist() == list(range(7))


def test_config_describes_the_model():
    config = ScorerConfig(image_size=33, patch_size=11, n_embd=26, n_head=2, image_layers=3, text_layers=1)
    with torch.device("meta"):
        clip = build_clip(config, 41, pad_id=PAD, eos_id=EOS)
    assert clip.image_tower.positions.shape == (9, 26)
    assert clip.text_tower.tokens.weight.shape == (41, 26)
    assert clip.text_tower.positions.shape == (24, 26)
    assert (len(clip.image_tower.blocks), len(clip.text_tower.blocks)) == (3, 1)
    assert (clip.image_size, clip.text_length, clip.embed_dim) == (33, 24, 256)
    assert (clip.text_tower.pad_id, clip.text_tower.eos_id) == (PAD, EOS)


@pytest.mark.parametrize("change", [{"patch_size": 5}, {"n_head": 3}])
def test_impossible_shapes_are_refused(change):
    with pytest.raises(UserError, match=f"{next(iter(change))} {next(iter(change.values()))}"):
        make_clip(**change)


def test_unfit_inputs_are_refused():
    clip = make_clip()
    with pytest.raises(UserError, match="without end-of-text id 3"):
        clip.encode_text(torch.tensor([[7, EOS, PAD], [7, 8, 9]]))
    with pytest.raises(UserError, match="14 ids came; at most 13"):
        clip.encode_text(make_ids([7] * 13, width=17))
    with pytest.raises(UserError, match=r"\(1, 3, 21, 14\)"):
        clip.encode_image(torch.zeros(1, 3, 21, 14))


# --- scorer


def test_embeddings_are_normalised_fp32_and_free_to_use():
    scorer = make_scorer()
    for embed in (scorer.embed_images(make_pictures(5)), scorer.embed_texts(["a", "bc", "def"])):
        assert embed.dtype == torch.float32
        assert embed.shape[1] == 17
        torch.testing.assert_close(embed.norm(dim=1), torch.ones(len(embed)))
        assert not embed.requires_grad
        embed.requires_grad_(True).square().sum().backward()


def test_chunks_do_not_matter():
    pictures, texts = make_pictures(7), ["a", "bcdefghijklmnopqrstuvw", "xy", "zab", "c"]
    whole, parts = make_scorer(), make_scorer(chunk_size=3)
    torch.testing.assert_close(parts.embed_images(pictures), whole.embed_images(pictures))
    torch.testing.assert_close(parts.embed_images(to_pixels(pictures, 29)), whole.embed_images(to_pixels(pictures, 29)))
    torch.testing.assert_close(parts.embed_texts(texts), whole.embed_texts(texts))


def test_pictures_and_their_pixels_embed_alike():
    scorer, pictures = make_scorer(), make_pictures(3, (31, 23))
    torch.testing.assert_close(scorer.embed_images(to_pixels(pictures, SIZE)), scorer.embed_images(pictures))


def test_other_sizes_are_cropped_to_the_middle_and_antialiased():
    seen = []
    scorer = make_scorer(Compass())
    scorer.model.encode_image = lambda pixels: seen.append(pixels) or pixels[:, :2, 0, 0] + 3
    # Stripes as wide apart as the new pixels: antialiasing finds their mean, 0; a plain sample one of them.
    wide = torch.ones(1, 3, 63, 73)
    wide[..., 5:68] = torch.tensor([1.0, -0.5, -0.5]).repeat(21)
    scorer.embed_images(wide)
    assert seen[0].shape == (1, 3, SIZE, SIZE)
    torch.testing.assert_close(seen[0][..., 2:-2, 2:-2], torch.zeros(1, 3, 17, 17), rtol=0, atol=1e-5)


def test_inputs_stay_as_they_are():
    scorer, pixels, texts = make_scorer(), torch.randn(5, 3, 29, 29), ["a", "b"]
    before = pixels.clone()
    scorer.classify(pixels, texts)
    assert torch.equal(pixels, before)
    assert texts == ["a", "b"]


def test_ranking_is_best_first_and_ties_keep_their_order():
    reds = [0.9, 0.2, 0.5, 0.2, -0.2, 0.7, 0.2]
    pixels = torch.tensor(reds)[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    scorer = make_scorer(Compass(), chunk_size=3)
    order, scores = scorer.rank(pixels, "a")
    assert order.tolist() == [1, 3, 4, 6, 2, 5, 0]
    torch.testing.assert_close(scores, torch.tensor([reds[i] for i in order]).cos())
    torch.testing.assert_close(scorer.score(pixels, "a"), torch.tensor(reds).cos())
    order, _ = scorer.rank(pixels, "b")
    assert order.tolist() == [0, 5, 2, 1, 3, 6, 4]


def test_label_probabilities_by_hand():
    reds = torch.tensor([0.9, 0.0, -0.4])
    pixels = reds[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    chances = make_scorer(Compass()).classify(pixels, ["a", "b"])
    # cos and sin are the cosines with the two labels, 5 is the scale.
    expected = (5 * (reds.cos() - reds.sin())).sigmoid()
    torch.testing.assert_close(chances[:, 0], expected)
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(3))


def test_label_probabilities_of_a_real_model_sum_to_one():
    chances = make_scorer().classify(make_pictures(5), ["a", "bc", "def"])
    assert chances.shape == (5, 3)
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(5))


def test_nothing_in_nothing_out():
    scorer = make_scorer()
    assert scorer.embed_images([]).shape == (0, 17)
    assert scorer.embed_texts([]).shape == (0, 17)
    order, scores = scorer.rank(torch.zeros(0, 3, SIZE, SIZE), "a")
    assert order.shape == scores.shape == (0,)


def test_wrong_kinds_are_refused():
    scorer = make_scorer()
    with pytest.raises(UserError, match="single text 'abc'"):
        scorer.embed_texts("abc")
    with pytest.raises(UserError, match="0 labels"):
        scorer.classify(make_pictures(2), [])
    with pytest.raises(UserError, match=r"\(3, 21, 21\)"):
        scorer.embed_images(torch.zeros(3, SIZE, SIZE))
    with pytest.raises(UserError, match="uint8"):
        scorer.embed_images(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))
    with pytest.raises(UserError, match="list of PIL pictures"):
        scorer.embed_images(make_pictures(1)[0])
    with pytest.raises(UserError, match="list of PIL pictures"):
        scorer.embed_images(["picture.png"])


# --- dalle classify


@pytest.fixture
def run(monkeypatch):
    def load_scorer(name, device):
        assert (name, device) == ("emoji", "cpu")
        return make_scorer(Compass())

    monkeypatch.setitem(sys.modules, "dalle_mini_impl.checkpoint", SimpleNamespace(load_scorer=load_scorer))
    return lambda *words: CliRunner().invoke(classify, [str(word) for word in words])


@pytest.fixture
def pictures(tmp_path):
    # Red 0.9 * 127.5 above the middle points to "b", the middle itself to "a".
    paths = []
    for name, red in (("up", 242), ("along", 127)):
        Image.new("RGB", (23, 29), (red, 0, 0)).save(tmp_path / f"{name}.png")
        paths.append(tmp_path / f"{name}.png")
    return paths


def test_command_prints_likeliest_label_first(run, pictures):
    result = run(*pictures, "--labels", "a, b")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert (lines[0], lines[3]) == tuple(str(path) for path in pictures)
    assert [line.split()[-1] for line in lines[1:3] + lines[4:6]] == ["b", "a", "a", "b"]
    assert lines[4].split()[0] == f"{1 / (1 + math.exp(-5)):.1%}"  # red 127 lies within 0.005 of angle 0


def test_command_prints_json(run, pictures):
    result = run(*pictures, "--labels", "a", "--labels", "b", "--json")
    entries = json.loads(result.stdout)
    assert [entry["image"] for entry in entries] == [str(path) for path in pictures]
    assert [entry["labels"][0]["label"] for entry in entries] == ["b", "a"]
    assert sum(label["probability"] for label in entries[0]["labels"]) == pytest.approx(1)


def test_labels_come_once_from_options_and_file(run, pictures, tmp_path):
    (tmp_path / "labels.txt").write_text("a\n\nb, with comma\n", encoding="utf-8")
    result = run(pictures[0], "--labels", "a,å", "--labels-file", tmp_path / "labels.txt", "--json")
    labels = [label["label"] for label in json.loads(result.stdout)[0]["labels"]]
    assert sorted(labels) == ["a", "b, with comma", "å"]
    result = run(pictures[0], "--labels", "a,b,c", "--top", "2", "--json")
    assert len(json.loads(result.stdout)[0]["labels"]) == 2


def test_command_refuses_bad_input(run, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:40])
    (tmp_path / "latin.txt").write_bytes(b"\xe5")
    for words, message in (
        ((tmp_path / "absent.png", "--labels", "a"), "absent.png is not a readable picture"),
        ((tmp_path / "broken.png", "--labels", "a"), "broken.png is not a readable picture"),
        ((pictures[0], "--labels", " ,"), "no label came"),
        ((pictures[0],), "no label came"),
        ((pictures[0], "--labels-file", tmp_path / "absent.txt"), "cannot read labels"),
        ((pictures[0], "--labels-file", tmp_path / "latin.txt"), "cannot read labels"),
    ):
        result = run(*words)
        assert isinstance(result.exception, UserError), words
        assert message in str(result.exception)
