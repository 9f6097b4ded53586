"""Adapters to other libraries, with tiny random models saved in those libraries' formats."""

import json
import socket
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import CAPTIONS, randomise
from PIL import Image
from torch import nn

from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.sentencepiece_tokenizer import train_text_tokenizer
from dalle_mini_impl.util.errors import UserError

SIZE, WIDTH, TEXT_LENGTH = 28, 22, 13
TEXTS = ["a red heart", "ein gelber Stern", "قلب أحمر 🦄", "a " * 5000, ""]
VISION = {"hidden_size": WIDTH, "intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": SIZE, "patch_size": 7}


def pictures():
    random = np.random.default_rng(0)
    sizes = ((28, 28), (61, 40), (33, 90), (20, 17), (200, 3))
    coarse = [Image.fromarray(random.integers(0, 256, (3, 5, 3), dtype=np.uint8)) for _ in sizes]
    return [picture.resize(size) for picture, size in zip(coarse, sizes, strict=True)]


def text_config(vocab, **changes):
    shape = {"vocab_size": vocab, "hidden_size": WIDTH, "intermediate_size": 29, "num_hidden_layers": 2}
    return shape | {"num_attention_heads": 2, "max_position_embeddings": TEXT_LENGTH} | changes


def save_clip(folder):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({piece: number for number, piece in enumerate(pieces)}, []).save_pretrained(folder)
    ids = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1, "pad_token_id": len(pieces) - 1}
    config = CLIPConfig(text_config=text_config(len(pieces), **ids), vision_config=VISION, projection_dim=17)
    model = randomise(CLIPModel(config), 3, scale=2.0)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
    model.save_pretrained(folder)
    side = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=side).save_pretrained(folder)


def save_siglip(folder):
    from transformers import SiglipConfig, SiglipModel, SiglipTokenizer
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    words = train_text_tokenizer(CAPTIONS, folder / "words.model", 367)
    SiglipTokenizer(str(folder / "words.model"), model_input_names=["input_ids"]).save_pretrained(folder)
    ids = {"bos_token_id": words.bos_id, "eos_token_id": words.eos_id, "pad_token_id": words.eos_id}
    config = SiglipConfig(text_config=text_config(words.vocab_size, **ids), vision_config=VISION)
    model = randomise(SiglipModel(config), 4, scale=2.0)
    with torch.no_grad():
        model.logit_scale.fill_(1.9)
        model.logit_bias.fill_(-0.7)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, resample=2).save_pretrained(folder)


SAVE = {"clip": save_clip, "siglip": save_siglip}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of each kind of model. Tests must not change them."""
    pytest.importorskip("transformers")
    pytest.importorskip("google.protobuf")
    made = {}
    for kind, save in SAVE.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        save(made[kind])
    return made


def library_logits(folder):
    """Log-odds (pictures, texts) by transformers alone."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
    )
    pixels = AutoImageProcessor.from_pretrained(folder)(pictures(), return_tensors="pt")
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder)(**tokens, **pixels).logits_per_image


@pytest.mark.parametrize("kind", SAVE)
def test_transformers_models_give_the_librarys_results_without_network(folders, kind, monkeypatch):
    def refuse(*_):
        raise AssertionError("used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    scorer = Scorer.from_pretrained(f"hf:{folders[kind]}")
    logits = library_logits(folders[kind])
    assert logits.std(dim=0).min() > 0.1
    assert logits.std(dim=1).min() > 0.1
    expected = logits.softmax(dim=-1) if kind == "clip" else logits.sigmoid()
    torch.testing.assert_close(scorer.classify(pictures(), TEXTS), expected, rtol=1e-4, atol=1e-5)
    order, scores = scorer.rank(pictures(), TEXTS[1])
    assert order.tolist() == logits[:, 1].argsort(descending=True).tolist()
    expected_scores = logits[:, 1] / scorer.scale if kind == "clip" else logits[:, 1].sigmoid()
    torch.testing.assert_close(scores, expected_scores[order], rtol=1e-4, atol=1e-5)
    embed = scorer.embed_images(pictures())
    assert embed.dtype == torch.float32
    torch.testing.assert_close(embed.norm(dim=1), torch.ones(5))
    assert scorer.embed_texts([]).shape == (0, embed.shape[1])


def test_preprocess_is_read_from_the_folder(folders):
    clip = Scorer.from_pretrained(f"hf:{folders['clip']}").preprocess
    assert (clip.size, clip.interpolation, clip.resize, clip.activation) == (SIZE, "bicubic", "crop", "softmax")
    assert clip.mean[0] == pytest.approx(0.4814547)
    assert clip.std[2] == pytest.approx(0.2757771)
    half = (0.5, 0.5, 0.5)
    assert Scorer.from_pretrained(f"hf:{folders['siglip']}").preprocess == Preprocess(
        SIZE, half, half, "bilinear", "squash", "sigmoid"
    )


def test_text_that_is_not_utf8_has_an_embedding(folders):
    assert Scorer.from_pretrained(f"hf:{folders['clip']}").embed_texts(["a \udce5"]).isfinite().all()


def change(folder, target, name, **values):
    """A copy of a saved model with other values in one of its JSON files."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    settings = json.loads((target / name).read_text())
    (target / name).write_text(json.dumps(settings | values))
    return target


PREPARE = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"model_type": "bert"}, "expected a model of type clip or siglip, got hf:.* of type bert"),
        (
            PREPARE,
            {"crop_size": {"height": 21, "width": 28}},
            r"expected a model of square pictures, got sides of \[21, 28\]",
        ),
        (PREPARE, {"do_center_crop": False}, "got size .* and crop None"),
        (PREPARE, {"do_resize": False}, "expected an image processor that resizes"),
        (PREPARE, {"rescale_factor": 1.0}, "resizes and divides values by 255"),
        (PREPARE, {"resample": 0}, "expected preprocess interpolation .*, got 'nearest'"),
        (PREPARE, {"size": {"shortest_edge": 35}, "crop_size": {"height": 35, "width": 35}}, "got one that makes 35"),
        (PREPARE, {"image_std": [0.0, 1.0, 1.0]}, "above 0"),
    ],
)
def test_unsupported_settings_are_refused(folders, tmp_path, name, values, message):
    folder = change(folders["clip"], tmp_path, name, **values)
    with pytest.raises(UserError, match=message) as caught:
        Scorer.from_pretrained(f"hf:{folder}")
    assert "\n" not in str(caught.value)


def test_missing_weights_and_files_are_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = change(folders["clip"], tmp_path, "config.json")
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights, such as text_projection\.weight"):
        Scorer.from_pretrained(f"hf:{folder}")
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot load hf:"):
        Scorer.from_pretrained(f"hf:{folder}")
    with pytest.raises(UserError, match="which is no such folder"):
        Scorer.from_pretrained("hf:./absent")
    with pytest.raises(UserError, match="which is no such folder"):
        Scorer.from_pretrained("hf:")


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"transformers is not installed.*\[clip\]"):
        Scorer.from_pretrained("hf:./absent")
    with pytest.raises(UserError, match=r"open_clip_torch is not installed.*\[open-clip\]"):
        Scorer.from_pretrained("open_clip:ViT-B-32:openai")


# --- open_clip


class StandIn(nn.Module):
    """The used part of an open_clip model's interface."""

    def __init__(self, bias):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(3, 17), nn.Embedding(131, 17)
        self.logit_scale = nn.Parameter(torch.tensor(1.3))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0)) if bias else None
        self.visual = types.SimpleNamespace(image_size=(SIZE, SIZE))

    def encode_image(self, pixels):
        return self.image(pixels.mean(dim=(2, 3)))

    def encode_text(self, text_ids):
        return self.text(text_ids).mean(dim=1)


class StandInTokenizer:
    context_length = TEXT_LENGTH

    def __call__(self, texts, context_length=None):
        rows = [[ord(letter) % 131 for letter in text[:context_length]] for text in texts]
        return torch.tensor([row + [0] * ((context_length or TEXT_LENGTH) - len(row)) for row in rows])


@pytest.fixture
def open_clip(monkeypatch):
    """A stand-in for the library, with its settings and the list of models it was asked to create."""
    settings = {"size": SIZE, "mode": "RGB", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "fill_color": 0}
    settings |= {"interpolation": "bilinear", "resize_mode": "shortest"}
    created = []

    def create_model(name, pretrained, *, precision, require_pretrained, force_quick_gelu):
        assert precision == "fp32"
        assert require_pretrained
        created.append((name, pretrained))
        if pretrained == "absent":
            raise RuntimeError("no such\ntag")
        quick = force_quick_gelu or "quickgelu" in name
        if quick != (pretrained == "openai"):
            warnings.warn(f"QuickGELU mismatch between final model config (quick_gelu={quick}) and …", stacklevel=2)
        model = StandIn(bias="SigLIP" in name)
        model.quick_gelu = quick
        return model

    module = types.SimpleNamespace(
        create_model=create_model,
        get_pretrained_cfg=lambda name, tag: {"quick_gelu": tag == "openai"} if tag != "absent" else {},
        get_tokenizer=lambda name: StandInTokenizer(),
        get_model_preprocess_cfg=lambda model: settings,
    )
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return types.SimpleNamespace(created=created, settings=settings)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP"])
def test_open_clip_models_classify_as_computed_directly(open_clip, name):
    scorer = Scorer.from_pretrained(f"open_clip:{name}:webli")
    assert open_clip.created == [(name, "webli")]
    activation = "sigmoid" if "SigLIP" in name else "softmax"
    expected = Preprocess(SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), "bilinear", "crop", activation)
    assert scorer.preprocess == expected
    model, images, texts = StandIn(bias="SigLIP" in name), pictures(), ["a", "bc", "def"]
    image = nn.functional.normalize(model.encode_image(expected.from_images(images)), dim=-1)
    text = nn.functional.normalize(model.encode_text(StandInTokenizer()(texts)), dim=-1)
    logits = image @ text.T * model.logit_scale.exp()
    expected_probabilities = (logits - 2).sigmoid() if activation == "sigmoid" else logits.softmax(dim=-1)
    torch.testing.assert_close(scorer.classify(images, texts), expected_probabilities.detach())


def test_open_clip_folders_and_hub_names_need_no_tag(open_clip):
    for name in ("local-dir:some/folder", "hf-hub:someone/model"):
        Scorer.from_pretrained(f"open_clip:{name}")
    assert open_clip.created == [("local-dir:some/folder", None), ("hf-hub:someone/model", None)]


def test_open_clip_errors_are_one_line(open_clip):
    with pytest.raises(UserError, match="expected open_clip:MODEL:PRETRAINED"):
        Scorer.from_pretrained("open_clip:ViT-B-32")
    with pytest.raises(UserError, match=r"cannot load open_clip:ViT-B-32:absent \(no such tag\)"):
        Scorer.from_pretrained("open_clip:ViT-B-32:absent")
    for name, value, message in (("resize_mode", "longest", "got longest"), ("size", (28, 21), "square pictures")):
        original = open_clip.settings[name]
        open_clip.settings[name] = value
        with pytest.raises(UserError, match=message):
            Scorer.from_pretrained("open_clip:ViT-B-32:openai")
        open_clip.settings[name] = original


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_weights_trained_with_quick_gelu_get_it_under_every_name(open_clip, name):
    trained_with: Any = Scorer.from_pretrained(f"open_clip:{name}:openai").model
    trained_without: Any = Scorer.from_pretrained("open_clip:ViT-B-32:laion2b").model
    assert trained_with.model.quick_gelu
    assert not trained_without.model.quick_gelu


def test_quick_gelu_for_weights_trained_without_it_is_refused(open_clip):
    with pytest.raises(UserError, match="QuickGELU mismatch"):
        Scorer.from_pretrained("open_clip:ViT-B-32-quickgelu:laion2b")


def test_models_of_the_installed_open_clip_load_from_a_file(tmp_path):
    library = pytest.importorskip("open_clip")
    model = library.create_model("ViT-S-32-alt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    scorer = Scorer.from_pretrained(f"open_clip:ViT-S-32-alt:{tmp_path / 'weights.pt'}")
    prepare = library.image_transform(224, is_train=False)
    pixels = torch.stack([prepare(picture) for picture in pictures()[:2]])
    with torch.inference_mode():
        logits = model.eval().get_logits(pixels, library.get_tokenizer("ViT-S-32-alt")(["a", "b"]))[0]
    torch.testing.assert_close(scorer.classify(pictures()[:2], ["a", "b"]), logits.softmax(dim=-1))


# --- a tokenizer that does not belong to the model


class LetterIds:
    """The used part of a tokenizer of transformers; without `knows_letters` one that was made without its files."""

    def __init__(self, size=131, eos=130, knows_letters=True):
        self.size, self.eos, self.knows_letters = size, eos, knows_letters

    def __len__(self):
        return self.size

    def __call__(self, texts, *, max_length, **settings):
        rows = [[ord(letter) % 97 for letter in text if self.knows_letters][: max_length - 1] for text in texts]
        ids = [[*row, self.eos, *[0] * (max_length - 1 - len(row))] for row in rows]
        return {"input_ids": torch.tensor(ids)}


class PooledAtEnd(nn.Module):
    """Sums the embeddings up to the first end-of-text id, or up to the first id if there is none."""

    def __init__(self, eos):
        super().__init__()
        torch.manual_seed(0)
        self.text, self.eos = nn.Embedding(131, 17), eos
        self.logit_scale = nn.Parameter(torch.tensor(1.3))

    def get_text_features(self, input_ids):
        ends = (input_ids == self.eos).int().argmax(1)
        first = torch.full((len(ends), 17), 0.1)
        pairs = zip(input_ids, ends, strict=True)
        rows = [self.text(ids[:end]).sum(0) if end else first[0] for ids, end in pairs]
        return types.SimpleNamespace(pooler_output=torch.stack(rows))


@pytest.fixture
def stand_in_transformers(monkeypatch, tmp_path):
    """Put a model and a tokenizer in place of those that transformers would load; returns the scorer's name."""
    side = types.SimpleNamespace(height=SIZE, width=SIZE)
    processor = types.SimpleNamespace(
        do_resize=True, do_rescale=True, rescale_factor=1 / 255, do_center_crop=True, crop_size=side, resample=3,
        size=types.SimpleNamespace(shortest_edge=SIZE), do_normalize=False,
    )  # fmt: skip

    def put(tokenizer, model):
        config = types.SimpleNamespace(
            model_type="clip", projection_dim=17, vision_config=types.SimpleNamespace(image_size=SIZE),
            text_config=types.SimpleNamespace(vocab_size=131, max_position_embeddings=TEXT_LENGTH),
        )  # fmt: skip
        loaded = {
            "AutoConfig": config, "AutoTokenizer": tokenizer, "AutoImageProcessor": processor,
            "AutoModel": (model, {"missing_keys": []}),
        }  # fmt: skip
        library = types.SimpleNamespace(
            **{
                name: types.SimpleNamespace(from_pretrained=lambda *_, value=value, **__: value)
                for name, value in loaded.items()
            }
        )
        monkeypatch.setitem(sys.modules, "transformers", library)
        return f"hf:{tmp_path}"

    return put


def test_texts_that_are_cut_are_named_once(stand_in_transformers):
    scorer = Scorer.from_pretrained(stand_in_transformers(LetterIds(), PooledAtEnd(eos=130)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.embed_texts(["a cat", "b" * (TEXT_LENGTH - 1)])
    with pytest.warns(UserWarning, match="^2 of 3 texts have more than .* 13 text ids and are cut, such as 'cc"):
        scorer.embed_texts(["a cat", "c" * TEXT_LENGTH, "d" * 30000])


@pytest.mark.parametrize("size", [49, 100, 160, 49408])
def test_a_tokenizer_of_another_size_is_refused(stand_in_transformers, size):
    name = stand_in_transformers(LetterIds(size), PooledAtEnd(eos=130))
    with pytest.raises(UserError, match=f"a tokenizer of about 131 text ids, as its model has, got one of {size}"):
        Scorer.from_pretrained(name)


@pytest.mark.parametrize(
    ("tokenizer", "model"),
    [(LetterIds(knows_letters=False), PooledAtEnd(eos=130)), (LetterIds(), PooledAtEnd(eos=1))],
    ids=["without its files", "with another end-of-text id"],
)
def test_a_model_that_embeds_all_texts_alike_is_refused(stand_in_transformers, tokenizer, model):
    name = stand_in_transformers(tokenizer, model)
    with pytest.raises(UserError, match="to embed different texts differently, got equal embeddings of 'a cat' and"):
        Scorer.from_pretrained(name)
