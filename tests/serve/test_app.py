"""The routes: what OpenAI's API says, and the same pictures as in Python."""

import base64
import copy
import dataclasses
import json
import threading
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from helpers.engines import busy
from helpers.models import SCORER, make_transformer
from helpers.serving import DRAW, error_of, picture_of, png, serving
from helpers.training import DEADLINE
from PIL import Image

from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.serve.fields import OF_DIFFUSION
from dalle_mini_impl.util.save_picture import read_metadata

FIELDS = {"n": 2, "candidates": 3, "seed": 5, "rank": "both", "temperature": 0.8}
PICTURE = Image.effect_noise((50, 30), 90).convert("RGB")


def pixels(image):
    return np.asarray(image).tolist()


def images_of(response):
    assert response.status_code == 200, response.text
    return [picture_of(item) for item in response.json()["data"]]


# --- drawing


def test_pictures_are_those_of_generate(client, own_dalle):
    answer = client.draw(**FIELDS).json()
    expected = own_dalle.generate("a red heart", candidates=3, keep=2, seed=5, rank="both", temperature=0.8)
    assert [pixels(picture_of(item)) for item in answer["data"]] == [pixels(one.image) for one in expected]
    assert [item["seed"] for item in answer["data"]] == [one.seed for one in expected]
    assert [item["score"] for item in answer["data"]] == [one.score for one in expected]
    assert abs(answer["created"] - time.time()) < 60
    width, height = expected[0].image.size
    assert (answer["size"], answer["output_format"]) == (f"{width}x{height}", "png")
    text, ids = len(own_dalle.encode("a red heart")), 3 * own_dalle.stream.image_length
    assert answer["usage"]["total_tokens"] == text + ids == answer["usage"]["input_tokens"] + ids


def test_the_transformer_draws_also_where_the_model_recommends_another_decoder(client, own_dalle, monkeypatch):
    expected = images_of(client.draw(**FIELDS))
    monkeypatch.setattr(own_dalle, "sampling", dataclasses.replace(own_dalle.sampling, decoder="diffusion"))
    assert [pixels(one) for one in images_of(client.draw(**FIELDS))] == [pixels(one) for one in expected]
    assert client.draw(decoder="diffusion", **FIELDS).status_code == 400


def test_pngs_record_what_draws_them_again(client, own_dalle, tmp_path):
    item = client.draw(negative="a tree", **FIELDS).json()["data"][0]
    path = tmp_path / "one.png"
    path.write_bytes(base64.b64decode(item["b64_json"]))
    metadata = read_metadata(path)
    assert metadata["model"] == "tiny"  # as clients call it: a path of the server is nobody's business
    assert metadata["pictures"][0] == {
        "prompt": "a red heart", "negative": "a tree", "seed": item["seed"], "score": item["score"],
    }  # fmt: skip
    again = own_dalle.generate("a red heart", negative="a tree", seeds=[item["seed"]], temperature=0.8)
    assert pixels(again[0].image) == pixels(Image.open(path))


def test_the_seeds_of_an_answer_draw_its_pictures_again(client):
    first = client.draw(n=2, quality="low").json()["data"]
    again = client.draw(n=2, seeds=[item["seed"] for item in first], rank="none").json()["data"]
    by_seed = {item["seed"]: pixels(picture_of(item)) for item in again}
    assert {item["seed"]: pixels(picture_of(item)) for item in first} == by_seed


def test_without_a_seed_each_request_has_its_own(client):
    seeds = [client.draw(quality="low").json()["data"][0]["seed"] for _ in range(3)]
    assert len(set(seeds)) == 3
    one, two = (client.draw(quality="low", seed=4).json()["data"][0] for _ in range(2))
    assert one == two


@pytest.mark.parametrize(("quality", "candidates"), [("low", 2), ("auto", 8), ("medium", 8), ("hd", 32)])
def test_quality_says_how_many_candidates_are_drawn(client, own_dalle, quality, candidates):
    usage = client.draw(n=2, quality=quality).json()["usage"]
    assert usage["output_tokens"] == candidates * own_dalle.stream.image_length


def test_every_setting_of_sampling_is_a_field(client):
    recommended = client.service.engine.dalle.sampling
    names = {field.name for field in dataclasses.fields(recommended)} - set(OF_DIFFUSION)
    settings = {name: getattr(recommended, name) for name in names}
    settings["background"] = "transparent" if settings.pop("transparent") else "opaque"
    plain, told = client.draw(seed=1), client.draw(seed=1, **settings)
    assert pixels(images_of(told)[0]) == pixels(images_of(plain)[0])


def test_a_single_candidate_is_not_ranked_unless_asked(client):
    assert client.draw(quality="low").json()["data"][0]["score"] is None
    assert client.draw(quality="low", rank="likelihood").json()["data"][0]["score"] < 0


def test_addresses_lead_to_the_same_files(client):
    fields = {"prompt": "a house", "n": 2, "seed": 3, "candidates": 2}
    urls = [item["url"] for item in client.post(DRAW, json=fields).json()["data"]]
    contents = [base64.b64decode(item["b64_json"]) for item in client.draw(**fields).json()["data"]]
    files = [client.get(url) for url in urls]
    assert [file.content for file in files] == contents
    assert {file.headers["content-type"] for file in files} == {"image/png"}
    assert all(url.startswith("http://127.0.0.1/files/") for url in urls)
    assert error_of(client.get("/files/" + "a" * 43 + ".png"), 404)
    for path in ("/files/..%2f..%2fetc%2fpasswd", "/files/%2e%2e/files", "/files/"):
        assert error_of(client.get(path), 404)


def test_addresses_begin_as_told(own_dalle, tmp_path):
    from helpers.serving import ADDRESS, Client

    from dalle_mini_impl.config.serving import ServiceLimits
    from dalle_mini_impl.serve.app import make_app
    from dalle_mini_impl.serve.keys import Keys

    options = {"keys": Keys(), "limits": ServiceLimits(), "url": "https://pictures.example/"}
    with Client(make_app(own_dalle, ("tiny",), tmp_path, **options), base_url=ADDRESS) as client:
        url = client.draw(response_format="url", quality="low").json()["data"][0]["url"]
    assert url.startswith("https://pictures.example/files/")


def test_larger_sizes_show_each_pixel_as_a_square(client):
    small, large = images_of(client.draw(seed=1)), images_of(client.draw(seed=1, size="120x72"))
    assert small[0].size == (40, 24)
    assert large[0].size == (120, 72)
    assert pixels(large[0].resize((40, 24), Image.Resampling.NEAREST)) == pixels(small[0])


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_other_formats_record_the_same(client, tmp_path, name):
    first = client.draw(seed=1).json()["data"][0]
    answer = client.draw(seed=1, output_format=name, response_format="url").json()
    assert answer["output_format"] == name
    url = answer["data"][0]["url"]
    assert url.endswith(f".{name}")
    file = client.get(url)
    assert file.headers["content-type"] == f"image/{name}"
    (tmp_path / "one").write_bytes(file.content)
    assert Image.open(tmp_path / "one").format == name.upper()
    assert read_metadata(tmp_path / "one")["pictures"][0]["seed"] == first["seed"]
    answers = [client.draw(seed=1, output_format=name, output_compression=value) for value in (5, 100)]
    poor, rich = (len(answer.json()["data"][0]["b64_json"]) for answer in answers)
    assert poor < rich


def test_the_compression_that_clients_send_by_default_changes_no_png(client):
    plain, sent = (client.draw(seed=1, **field).json() for field in ({}, {"output_compression": 100}))
    assert sent["data"] == plain["data"]


def test_transparent_backgrounds(client):
    assert {image.mode for image in images_of(client.draw(background="transparent"))} == {"RGBA"}
    assert {image.mode for image in images_of(client.draw(background="opaque"))} == {"RGB"}


def test_requests_that_wait_are_drawn_together_and_each_is_as_alone(client):
    from concurrent.futures import ThreadPoolExecutor

    requests = [{"prompt": f"{number} cats", "seed": number, "n": 1, "quality": "low"} for number in range(8)]
    alone = [client.draw(**request).json()["data"] for request in requests]
    before = client.metric("dalle_batch_candidates_count")
    with ThreadPoolExecutor(8) as clients:
        with busy(client.service.engine):
            waiting = [clients.submit(client.draw, **request) for request in requests]
            while client.service.engine.candidates < 8:
                assert not any(one.done() for one in waiting)
                time.sleep(0.001)  # a turn of polling
        assert [one.result().json()["data"] for one in waiting] == alone
    assert client.metric("dalle_batch_candidates_count") == before + 1
    assert client.metric("dalle_pictures_total") == 16


# --- mistakes


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"n": 0}, "n", "greater than or equal to 1, got 0"),
        ({"n": 10**9}, "n", "at most 64 candidates"),
        ({"n": "many"}, "n", "valid integer"),
        ({"n": 1.5}, "n", "integer"),
        ({"n": 3, "candidates": 2}, "n", "at most the 2 candidates, got 3"),
        ({"candidates": 65}, "candidates", "at most 64 candidates, got 65"),
        ({"seeds": list(range(65))}, "candidates", "at most 64"),
        ({"seeds": []}, "seeds", "at least 1 item"),
        ({"seeds": [1], "seed": 2}, "seeds", "seeds alone"),
        ({"seeds": [2**63]}, "seeds.0", "less than"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"size": "1000x1000"}, "size", "auto or one of 40x24, 80x48"),
        ({"size": "x" * 10_000}, "size", "auto or one of"),
        ({"size": "640x384", "n": 64, "quality": "low", "candidates": 64}, None, ""),
        ({"response_format": "jpg"}, "response_format", "'url' or 'b64_json'"),
        ({"quality": "best"}, "quality", "'auto', 'low'"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"output_format": "jpeg", "background": "transparent"}, None, "JPEG"),
        ({"output_compression": 50}, "output_compression", "output_format jpeg or webp"),
        ({"output_format": "webp", "output_compression": 101}, "output_compression", "less than or equal to 100"),
        ({"prompt": 7}, "prompt", "valid string"),
        ({"prompt": "x" * 1001}, "prompt", "at most 1000 characters, got 1001"),
        ({"negative": "x" * 1001}, "negative", "at most 1000 characters"),
        ({"temperature": -1}, None, "temperature"),
        ({"top_k": 10**9}, None, "top_k"),
        ({"guidance": "inf"}, "guidance", "finite number"),
        ({"rank": "best"}, None, "rank"),
        ({"colour": "red"}, "colour", "expected fields of the API, got colour"),
        ({"partial_images": 2}, "partial_images", "with stream"),
        ({"partial_images": 4, "stream": True}, "partial_images", "less than or equal to 3"),
        ({"model": "gpt-image-9"}, "model", "expected model tiny, got 'gpt-image-9'"),
    ],
)
def test_wrong_fields_are_named(client, fields, param, message):
    response = client.draw(**fields)
    if not message:  # the largest that is allowed
        assert len(images_of(response)) == 64
        return
    error = error_of(response, 404 if param == "model" else 400)
    assert error["param"] == param
    assert message in error["message"]
    assert len(error["message"]) < 400
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '"a"', "null", "1", "[" * 100_000, '{"prompt": "a", "n": NaN}', "\xff"]
)
def test_what_is_no_json_object_is_refused(client, body):
    error_of(client.post(DRAW, content=body.encode("latin-1"), headers={"content-type": "application/json"}))


def test_a_body_of_another_kind_is_refused(client):
    error_of(client.post(DRAW, data={"prompt": "a"}), 415)
    error_of(client.post(DRAW, content="prompt=a", headers={"content-type": "text/plain"}), 415)
    error_of(client.post("/v1/images/edits", json={"prompt": "a"}), 415)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    for content in ("nothing", "--x\r\n", "--x\r\n\r\n--x--"):
        error_of(client.post("/v1/images/edits", content=content, headers=broken))
    error_of(client.post("/v1/images/edits", content="--x", headers={"content-type": "multipart/form-data"}))


def test_unknown_paths_and_methods_have_errors_of_the_same_form(client):
    assert error_of(client.get("/v1/nothing"), 404)
    assert error_of(client.get(DRAW), 405)


def test_null_is_as_good_as_absent(client):
    assert images_of(client.draw(n=None, size=None, quality=None, user=None, model="tiny", style="vivid"))


def test_a_mistake_of_ours_is_logged_and_not_shown(client, monkeypatch, caplog):
    monkeypatch.setattr("dalle_mini_impl.serve.app.answers.encode_pictures", lambda *_: {}["secret"])
    error = error_of(client.draw(), 500)
    assert "secret" not in error["message"]
    assert error["type"] == "server_error"
    assert "secret" in caplog.text
    assert caplog.text.count("Traceback") == 1
    monkeypatch.undo()
    assert images_of(client.draw())  # the service goes on


def test_a_full_disk_is_a_mistake_of_ours(client, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(client.service.files, "add", full)
    error_of(client.draw(response_format="url"), 500)
    assert "No space left" in caplog.text


def test_old_pictures_are_looked_for_again_after_an_error(own_dalle, tmp_path, monkeypatch):
    calls, again = [], threading.Event()

    def remove_old(self):
        calls.append(self)
        if len(calls) == 1:
            raise OSError("Too many open files")
        again.set()

    monkeypatch.setattr("dalle_mini_impl.serve.app.SWEEP_SECONDS", 0.001)
    monkeypatch.setattr("dalle_mini_impl.serve.picture_files.PictureFiles.remove_old", remove_old)
    with serving(own_dalle, tmp_path):
        assert again.wait(DEADLINE)


def test_a_full_memory_is_told(client, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("dalle_mini_impl.serve.engine.generate_many", full)
    assert "memory" in error_of(client.draw(), 503)["message"]


# --- edits, variations, scores


def mask_with_hole(size, box):
    mask = Image.new("RGBA", size, (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), box)
    return mask


def test_edits_redraw_where_the_mask_is_transparent(client, own_dalle):
    box = (20, 10, 50, 30)
    files = {"image": png(PICTURE), "mask": png(mask_with_hole(PICTURE.size, box))}
    fields = {"prompt": "a cat", "seed": "3", "n": "2", "candidates": "4", "response_format": "b64_json"}
    answer = client.post("/v1/images/edits", files=files, data=fields)
    expected = own_dalle.complete(PICTURE, "a cat", box=box, seed=3, candidates=4, keep=2)
    assert [pixels(image) for image in images_of(answer)] == [pixels(one.image) for one in expected]


def test_a_mask_without_transparency_marks_in_white_and_a_picture_without_mask_by_its_own(client, own_dalle):
    box = (20, 10, 50, 30)
    white = Image.new("L", PICTURE.size, 0)
    white.paste(255, box)
    seen_through = PICTURE.convert("RGBA")
    seen_through.paste((0, 0, 0, 0), box)
    fields = {"prompt": "a cat", "seed": "3", "paste": "false", "response_format": "b64_json"}
    answers = [
        client.post("/v1/images/edits", files=files, data=fields)
        for files in (
            {"image": png(PICTURE), "mask": png(white)},
            {"image[]": png(seen_through)},
        )
    ]
    expected = [
        own_dalle.complete(picture, "a cat", box=box, seed=3, candidates=4, keep=1, paste=False)
        for picture in (PICTURE, seen_through)
    ]
    assert [pixels(images_of(one)[0]) for one in answers] == [pixels(one[0].image) for one in expected]


def test_edits_say_what_is_missing(client):
    def refused(files, **fields):
        return error_of(client.post("/v1/images/edits", files=files, data={"prompt": "a cat", **fields}))["message"]

    picture, hole = png(PICTURE), png(mask_with_hole(PICTURE.size, (0, 0, 9, 9)))
    assert "a mask, or a picture that is transparent" in refused({"image": picture})
    assert "one picture as image, got 0" in refused({"mask": hole})
    assert "one picture as image, got 2" in refused([("image[]", picture), ("image[]", picture)])
    assert "50×30 pixels, the size of the picture" in refused({"image": picture, "mask": png(PICTURE.resize((9, 9)))})
    assert "something to redraw" in refused({"image": picture, "mask": png(Image.new("L", PICTURE.size))})
    assert "cannot be read" in refused({"image": b"no picture", "mask": hole})
    assert "expected image to" not in refused({"image": picture, "mask": hole}, n="0")
    error = error_of(client.post("/v1/images/edits", files={"image": picture, "mask": hole}))
    assert error["param"] == "prompt"


def test_variations_keep_a_part_of_the_picture(client, own_dalle):
    fields = {"seed": "4", "n": "2", "strength": "0.3", "response_format": "b64_json"}
    answer = client.post("/v1/images/variations", files={"image": png(PICTURE)}, data=fields)
    expected = own_dalle.variations(PICTURE, strength=0.3, seed=4, candidates=8, keep=2)
    assert [pixels(image) for image in images_of(answer)] == [pixels(one.image) for one in expected]
    wrong = client.post("/v1/images/variations", files={"image": png(PICTURE)}, data={"strength": "0"})
    assert error_of(wrong)["param"] == "strength"


def test_scores_rank_and_classify(client, own_dalle):
    pictures = [Image.effect_noise((30, 30), sigma).convert("RGB") for sigma in (5, 50, 200)]
    files = [("image", png(picture)) for picture in pictures]
    order, scores = own_dalle.scorer.rank(pictures, "a red heart")
    ranked = client.post("/v1/score", files=files, data={"prompt": "a red heart"}).json()
    assert [one["index"] for one in ranked["data"]] == order.tolist()
    assert [one["score"] for one in ranked["data"]] == scores.tolist()
    labels = ["a cat", "a house", "a tree"]
    rows = own_dalle.scorer.classify(pictures, labels)
    answer = client.post("/v1/score", files=files, data={"labels": [*labels, "a cat"]}).json()
    for index, row in enumerate(rows.tolist()):
        best = answer["data"][index]["labels"]
        assert {one["label"]: one["probability"] for one in best} == dict(zip(labels, row, strict=True))
        assert [one["probability"] for one in best] == sorted(row, reverse=True)
        assert sum(one["probability"] for one in best) == pytest.approx(1)


def test_a_model_that_takes_image_embeddings_is_told_that_of_the_picture(own_dalle, tmp_path):
    transformer, stream = make_transformer(embed_dim=SCORER.embed_dim)
    told = copy.copy(own_dalle)
    told.transformer, told.stream = pack(transformer, "fp32", stream.image_range), stream
    expected = told.generate("", image_embed=PICTURE, seed=4, candidates=4, keep=1)
    fields = {"seed": "4", "response_format": "b64_json"}
    with serving(told, tmp_path) as client:
        varied, kept = (
            client.post("/v1/images/variations", files={"image": png(PICTURE)}, data=data)
            for data in (fields, {**fields, "strength": "0.5"})
        )
    assert pixels(images_of(varied)[0]) == pixels(expected[0].image)
    assert pixels(images_of(kept)[0]) == pixels(told.variations(PICTURE, seed=4, candidates=4, keep=1)[0].image)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "prompt or labels, got both or neither"),
        ({"prompt": "a", "labels[]": ["a", "b"]}, "got both or neither"),
        ({"labels": ["a"]}, "at least two labels"),
        ({"labels[]": ["a", "a"]}, "at least two labels"),
        ({"labels": ["a", "b"], "templates[]": ["no place"]}, "{}"),
        ({"prompt": "x" * 1001}, "at most 1000 characters"),
        ({"labels": [f"label {n}" for n in range(40)], "templates": [f"{n} {{}}" for n in range(40)]}, "got 1600"),
        ({"labels": ["long" * 100, "b"], "templates": ["{} {} {}"]}, "at most 1000 characters, got 1202"),
    ],
)
def test_scores_say_what_is_wrong(client, data, message):
    response = client.post("/v1/score", files={"image": png(PICTURE)}, data=data)
    assert message in error_of(response)["message"]


def test_scores_need_a_scorer_and_pictures(client, own_dalle, monkeypatch):
    assert "pictures as image, got none" in error_of(client.post("/v1/score", files={"other": b""}))["message"]
    monkeypatch.setattr(own_dalle, "_scorer", None)
    response = client.post("/v1/score", files={"image": png(PICTURE)}, data={"prompt": "a"})
    assert "a checkpoint with a scorer" in error_of(response)["message"]


# --- events


def events_of(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        kind, data = block.split("\n")
        values = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {values['type']}"
        found.append(values)
    return found


def test_a_stream_has_unfinished_pictures_and_then_those_of_the_plain_answer(client):
    fields = {"seed": 3, "n": 2, "candidates": 2, "size": "80x48"}
    events = events_of(client.draw(stream=True, partial_images=2, **fields))
    assert [(event["type"].rpartition(".")[2], event["index"]) for event in events] == [
        ("partial_image", 0), ("partial_image", 1), ("partial_image", 0), ("partial_image", 1),
        ("completed", 0), ("completed", 1),
    ]  # fmt: skip
    assert [event.get("partial_image_index") for event in events] == [0, 0, 1, 1, None, None]
    assert {picture_of(event).size for event in events} == {(80, 48)}
    plain = client.draw(**fields).json()
    assert [event["b64_json"] for event in events[4:]] == [item["b64_json"] for item in plain["data"]]
    assert events[-1]["usage"] == plain["usage"]


def test_a_stream_without_partial_images_and_one_of_an_edit(client):
    (event,) = events_of(client.draw(stream=True))
    assert event["type"] == "image_generation.completed"
    files = {"image": png(PICTURE), "mask": png(mask_with_hole(PICTURE.size, (0, 0, 50, 30)))}
    fields = {"prompt": "a cat", "stream": "true", "partial_images": "1"}
    kinds = [event["type"] for event in events_of(client.post("/v1/images/edits", files=files, data=fields))]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]


def test_a_mistake_that_shows_late_is_an_event(client):
    (event,) = events_of(client.draw(stream=True, top_p=7))
    assert event["type"] == "error"
    assert "top_p" in event["error"]["message"]
    error_of(client.draw(stream=True, n=0))  # one that shows early is an answer


# --- the rest


def test_models_are_listed_under_their_names(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert client.get("/v1/models/tiny").json() == model
    assert error_of(client.get("/v1/models/other/one"), 404)["code"] == "model_not_found"


def test_health_metrics_and_schema(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    client.draw()
    client.draw(n=0)
    text = client.get("/metrics").text
    assert f'dalle_requests_total{{route="{DRAW}",status="200"}} 1.0' in text
    assert f'dalle_requests_total{{route="{DRAW}",status="400"}} 1.0' in text
    assert "dalle_waiting_candidates 0.0" in text
    assert client.metric("dalle_in_hand_requests") == 0
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "mask", "prompt", "paste", "temperature"} <= body["properties"].keys()
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere


def test_two_services_do_not_mix(own_dalle, client, tmp_path):
    client.draw()
    with serving(own_dalle, tmp_path / "other") as other:
        assert other.metric("dalle_pictures_total") == 0
