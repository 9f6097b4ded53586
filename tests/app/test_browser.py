"""The page in Chromium, which finds no other host: every tab used as a visitor uses it."""

import re
import shutil
from urllib.parse import urlsplit

import pytest
from helpers.page import browser
from helpers.priors import take_embeddings
from PIL import Image

from dalle_mini_impl.app.server import PageSettings, serve
from dalle_mini_impl.search.index import ImageIndex
from dalle_mini_impl.util.save_picture import read_metadata

pytest.importorskip("gradio", reason="needs the extra app")
expect = pytest.importorskip("playwright.sync_api", reason="needs the package playwright").expect
pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
PATIENCE = 60_000
"""Milliseconds within which anything is expected to appear."""


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def photos(tiny_dalle, tmp_path_factory):
    """A folder of pictures with an index."""
    folder = tmp_path_factory.mktemp("pictures") / "photos"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (40, 24), name).save(folder / f"{name}.png")
    ImageIndex.create(folder / ".dalle-index", tiny_dalle.scorer).update(folder)
    return folder


@pytest.fixture(scope="module")
def address(chromium, tiny_model, photos, tmp_path_factory):
    model = take_embeddings(shutil.copytree(tiny_model, tmp_path_factory.mktemp("told") / "model"))
    with serve(PageSettings(model=str(model), device="cpu", pictures=photos)) as served:
        yield served


@pytest.fixture
def page(chromium, address):
    """The page, freshly opened; the test fails if it asked another host, or wrote an error to the console."""
    opened = chromium.new_page(viewport=DESKTOP)
    opened.set_default_timeout(PATIENCE)
    asked, errors = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    go(opened, address)
    yield opened
    opened.close()
    host = urlsplit(address).netloc
    assert not [url for url in asked if urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc != host]
    assert not [text for text in errors if "422" not in text]  # the status of what is refused below a field


def go(page, address):
    """Open the page, and wait until it is ready for a visitor: it then begins to tell the server that it is open."""
    with page.expect_request(re.compile("/heartbeat/"), timeout=PATIENCE):
        page.goto(address)
    page.get_by_role("tab", name="Draw").wait_for()


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def draw(page, prompt="a red heart", candidates=3):
    panel = open_tab(page, "Draw")
    panel.get_by_label("Description").fill(prompt)
    panel.get_by_role("button", name="Settings").click()
    number = panel.get_by_label("number input for Candidates")
    for _ in range(500):  # what is typed in the moment in which a field appears is lost
        number.fill(str(candidates))
        number.press("Tab")
        if panel.get_by_label("range slider for Candidates").input_value() == str(candidates):
            break
    panel.get_by_role("button", name="Draw", exact=True).click()
    panel.get_by_text(f"{candidates} candidates in").wait_for()
    return panel


def test_pictures_are_drawn_ranked_chosen_varied_and_completed(page, tmp_path):
    panel = draw(page)
    pictures = panel.locator(".pictures img")
    assert pictures.count() == 3
    scores = [float(text) for text in re.findall(r"score (-?[0-9.]+)", panel.locator(".pictures").inner_text())]
    assert scores == sorted(scores, reverse=True)
    assert all("a red heart, score" in pictures.nth(number).get_attribute("alt") for number in range(3))
    assert "Scores of 3 candidates" in panel.locator(".chart svg").get_attribute("aria-label")
    with page.expect_download() as download:
        panel.locator(".pictures a").first.click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert read_metadata(saved)["pictures"][0]["prompt"] == "a red heart"

    panel.get_by_role("button", name="Choose picture 2").press("Enter")
    panel.get_by_text("Chosen: a red heart").wait_for()
    panel.get_by_role("button", name="Complete …").click()
    page.get_by_role("tab", name="Complete", selected=True).wait_for()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator(".mask img").wait_for()
    assert panel.get_by_label("Description of the whole picture").input_value() == "a red heart"

    panel = open_tab(page, "Draw")
    panel.get_by_role("button", name="Variations").click()
    panel.get_by_text("3 candidates in").wait_for()
    panel.locator("input[type=file]").first.set_input_files(saved)
    panel.get_by_text("Drawn again").wait_for()
    assert pictures.count() == 1


def test_mistakes_are_told_below_the_field_that_has_them(page):
    panel = open_tab(page, "Draw")
    panel.get_by_role("button", name="Settings").click()
    seed_message = panel.get_by_text("Expected a whole number from 0")
    for _ in range(500):  # what is typed in the moment in which a field appears is lost
        panel.get_by_label("Seed").fill("-1")
        panel.get_by_role("button", name="Draw", exact=True).click()
        panel.get_by_text("Expected a description, got none").wait_for()
        if seed_message.is_visible():
            break
    for name, text in (("Description", "Expected a description, got none"), ("Seed", "Expected a whole number from 0")):
        field = panel.locator("label").filter(has_text=name)
        message = field.get_by_text(text)
        message.wait_for()
        assert message.bounding_box()["y"] > field.locator("textarea, input").bounding_box()["y"]


def test_cells_are_marked_by_pointer_and_by_keyboard_and_redrawn(page, tmp_path):
    panel = open_tab(page, "Complete")
    Image.new("RGB", (60, 40), "orange").save(tmp_path / "orange.png")
    panel.locator("input[type=file]").set_input_files(tmp_path / "orange.png")
    cells = panel.locator("[data-cell]")
    cells.first.wait_for()
    first, third = cells.nth(0).bounding_box(), cells.nth(2).bounding_box()
    page.mouse.move(first["x"] + 3, first["y"] + 3)
    page.mouse.down()
    page.mouse.move(third["x"] + 3, third["y"] + 3, steps=8)
    page.mouse.up()
    panel.get_by_role("group", name=re.compile("^Cells to redraw: 3 of")).wait_for()
    cells.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    panel.get_by_role("group", name=re.compile("^Cells to redraw: 4 of")).wait_for()
    panel.get_by_role("button", name="Complete", exact=True).click()
    panel.get_by_text("32 candidates in").wait_for()
    assert panel.locator(".pictures img").count() == 8
    panel.get_by_label("keep the top rows").check()
    before = panel.locator(".pictures img").first.get_attribute("src")
    panel.get_by_role("button", name="Complete", exact=True).click()
    expect(panel.locator(".pictures img").first).not_to_have_attribute("src", before, timeout=PATIENCE)
    panel.get_by_text("32 candidates in").wait_for()


def test_painting_is_shown_while_it_runs_and_stopped(page):
    panel = open_tab(page, "Paint")
    panel.get_by_label("What the picture should resemble").fill("a fox | snow:0.4")
    panel.get_by_label("number input for Steps").fill("1000")
    panel.get_by_role("button", name="Paint", exact=True).click()
    panel.get_by_text(re.compile("Painting, step")).wait_for()
    assert "a fox" in panel.locator(".pictures img").get_attribute("alt")
    panel.get_by_role("button", name="Stop").click()
    panel.get_by_text("Stopped.").wait_for()
    panel.get_by_label("What the picture should resemble").fill("a fox | secret.png")
    panel.get_by_role("button", name="Paint", exact=True).click()
    panel.get_by_role("alert").get_by_text("Expected texts, got the name of a picture file").wait_for()


def test_pictures_are_mixed_by_keyboard_and_saved_with_what_they_were_made_by(page, tmp_path):
    panel = draw(page)
    panel.get_by_role("button", name="Choose picture 1").press("Enter")
    panel.get_by_role("button", name="Mix …").click()
    page.get_by_role("tab", name="Mix", selected=True).wait_for()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_alt_text("The picture that was uploaded").wait_for()

    panel.get_by_label("vary it").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    panel.get_by_label("Or a description, in place of the other picture").fill("a house")
    panel.get_by_label("Or a description, in place of the picture").fill("")
    panel.get_by_role("button", name="Mix", exact=True).press("Enter")
    panel.get_by_text("6 pictures from the picture to a house.").wait_for()
    pictures = panel.locator(".pictures img")
    assert pictures.count() == 6
    assert pictures.nth(2).get_attribute("alt") == "Picture 3 of 6 from the picture to a house"

    panel.get_by_label("change it by words").check()
    panel.get_by_label("What it shows").fill("a red heart")
    panel.get_by_label("What it should show").fill("a house")
    panel.get_by_role("button", name="Mix", exact=True).click()
    panel.get_by_text("5 on the way to a house.").wait_for()
    with page.expect_download() as download:
        panel.locator(".pictures a").last.click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    record = read_metadata(tmp_path / "edit-06.png")["edit"]
    assert (record["source"], record["target"], record["theta"]) == ("a red heart", "a house", 0.5)

    panel.get_by_label("What it should show").fill("")
    panel.get_by_role("button", name="Mix", exact=True).click()
    panel.get_by_text("Expected a description, got none").wait_for()


def test_pictures_are_found_and_classified(page, photos):
    panel = open_tab(page, "Search and classify")
    panel.get_by_label("Search for").fill("a red heart")
    panel.get_by_role("button", name="Search", exact=True).click()
    panel.get_by_text("3 of 3 pictures.").wait_for()
    panel.get_by_label("my pictures").check()
    panel.locator("input[type=file]:not([webkitdirectory])").set_input_files([photos / "red.png", photos / "blue.png"])
    panel.get_by_label("Labels to choose from").fill("a cat, a dog")
    panel.get_by_text("blue.png").first.wait_for()
    panel.get_by_role("button", name="Classify").click()
    panel.get_by_text("2 of 2 pictures.").wait_for()
    assert re.fullmatch(r"(blue|red)\.png: a (cat|dog) \d+%", panel.locator(".pictures img").first.get_attribute("alt"))


def test_the_lesson_walks_through_one_picture(page):
    panel = open_tab(page, "How it works")
    panel.get_by_role("button", name="Show").click()
    panel.get_by_text("15 of 15 image ids").wait_for()
    assert "".join(panel.locator(".pieces code").all_inner_texts()).replace("\u2581", " ").strip() == "a red heart"
    assert panel.locator(".dimmed").count() == 12
    panel.get_by_label("number input for Step").fill("4")
    panel.get_by_label("number input for Step").press("Enter")
    panel.get_by_text("4 of 15 image ids").wait_for()
    assert panel.locator(".bars .marked").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_tab_is_wider_than_a_phone(chromium, address, scheme):
    page = chromium.new_page(viewport=PHONE, color_scheme=scheme)
    go(page, address)
    draw(page)
    for name in ("Draw", "Complete", "Paint", "Mix", "Search and classify", "How it works"):
        tab = page.get_by_role("tab", name=name)
        if tab.is_visible():
            tab.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.close()


def test_a_password_is_asked_for(chromium, tiny_model):
    settings = PageSettings(model=str(tiny_model), device="cpu", password="a long password")
    with serve(settings) as address:
        page = chromium.new_page()
        page.goto(address)
        page.get_by_label("username").fill("anyone")
        page.get_by_label("password").fill("wrong")
        page.get_by_role("button", name="Login").click()
        page.get_by_text("Incorrect").wait_for()
        page.get_by_label("username").fill("anyone")
        page.get_by_label("password").fill("a long password")
        page.get_by_role("button", name="Login").click()
        page.get_by_role("tab", name="Draw").wait_for()
        page.close()
