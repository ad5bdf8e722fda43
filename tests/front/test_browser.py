"""The report in a real browser: Chromium, headless, without a network."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from front.front import Front
from front.report import write_report
from front.tables import with_error
from run.samples import read_samples
from tests.support.browser import open_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", name="page")
def _page(browser, finished_run):
    with open_page(browser, (finished_run / "report.html").resolve().as_uri()) as page:
        yield page


WIDTHS = {320: 700, 390: 844, 1440: 900}  # and heights, of screens


def chosen(page):
    return page.inner_text("#chosen .chosen-head b").replace("base model", "base")


def box(page, name):
    return page.locator(name).first.bounding_box()


def pictures(page):
    return page.eval_on_selector_all("#pictures img", "images => images.map(i => i.src)")


def test_moving_the_slider_chooses_as_python_does_and_changes_pictures_and_numbers(
    page, finished_run
):
    front = Front.load(finished_run)
    page.check("input[value=preference]", force=True)
    seen = {}
    for step in (0, 150, 300, 500, 700, 850, 1000):
        page.fill("#preference", str(step))
        expected = front.pick(weights=(step / 1000, 1 - step / 1000)).id
        assert chosen(page) == expected
        assert page.inner_text("#share-0") == f"{step / 10:.0f} %"
        seen[expected] = (tuple(pictures(page)), page.inner_text("#chosen .measures"))
    assert len(seen) > 1
    assert len({shown for shown, _ in seen.values()}) == len(seen)
    assert len({numbers for _, numbers in seen.values()}) == len(seen)
    base_rows = {shown[::2] for shown, _ in seen.values()}
    assert len(base_rows) == 1  # the base model's pictures stay
    page.check("input[value=front]", force=True)


def test_the_slider_reaches_every_member_and_moves_nothing_else(page, finished_run):
    members = [member.id for member in Front.load(finished_run).members]
    places = {}
    for index, name in enumerate(members):
        page.fill("#along", str(index))
        assert chosen(page) == name
        assert page.inner_text("#position") == f"{index + 1} of {len(members)}"
        assert page.evaluate("location.hash") == f"#{name}"
        parts = (".slider-card", ".pictures-card", ".numbers-card", "#front-chart", "#strip")
        places[name] = [box(page, part) for part in parts]
    assert all(place == places[members[0]] for place in places.values())
    page.click("#previous")
    assert chosen(page) == members[-2]
    page.focus("#along")
    page.keyboard.press("ArrowRight")
    assert chosen(page) == members[-1]


def test_a_link_leads_to_its_point_and_to_what_is_pinned(page, finished_run):
    first, second = [member.id for member in Front.load(finished_run).members][:2]
    page.evaluate(f"location.hash = '#{first}&pin={second}'")
    page.wait_for_selector(f"#pictures-of >> text={first.replace('base', 'base model')}")
    assert page.inner_text("#key-other").startswith(second.replace("base", "base model"))
    shown = page.eval_on_selector_all("#pictures .of-other", "images => images.map(i => i.src)")
    assert shown == page.evaluate(f"pictures('report', '{second}')")
    page.click("#pin")
    assert page.inner_text("#key-other").startswith("base model")
    assert page.evaluate("location.hash") == f"#{first}"
    page.evaluate("location.hash = '#settings'")  # a section, not a point
    assert chosen(page) == first


def test_the_code_that_is_copied_draws_the_picture_that_is_shown(page, finished_run, tmp_path):
    member = next(m for m in Front.load(finished_run).policies if m.id != "base")
    page.click(f'tr[data-policy="{member.id}"] th')
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("#use [aria-label='Copy path']")
    assert page.evaluate("copied") == str(member.adapter.resolve())
    assert page.inner_text("#use code") == str(member.adapter.resolve())
    page.click("#use [aria-label^='Copy link']")
    assert (
        page.evaluate("copied")
        == f"{(finished_run / 'report.html').resolve().as_uri()}#{member.id}"
    )
    link = page.get_attribute("#use a[download]", "href")
    assert (finished_run / link).read_bytes() == member.file.read_bytes()
    page.click("#use [aria-label='Copy Python']")
    code = page.evaluate("copied").replace("picture.png", str(tmp_path / "picture.png"))
    exec(code, {})  # that it works is the claim
    with Image.open(tmp_path / "picture.png") as drawn:
        published = read_samples(finished_run, "report", member.id, 8)[0]
        difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(published).astype(int))
    assert difference.max() <= 1  # upsampling and products round differently in diffusers


def test_pictures_can_be_wiped_blinked_and_enlarged(page):
    page.check("input[value=wipe]", force=True)
    page.fill("#wipe", "25")
    clip = "getComputedStyle(document.querySelector('#pictures .of-chosen')).clipPath"
    assert page.evaluate(clip) == "inset(0px 0px 0px 25%)"
    page.check("input[value=blink]", force=True)
    page.wait_for_selector("#pictures.shows-other")
    assert page.is_hidden("#pictures .of-chosen >> nth=0")
    page.wait_for_selector("#pictures:not(.shows-other)")
    assert page.is_visible("#pictures .of-chosen >> nth=0")
    page.check("input[value=side]", force=True)
    page.click(".pair-pictures >> nth=2")
    assert page.inner_text("#lightbox-count") == "3 of 8"
    page.check("input[value=true]", force=True)
    page.wait_for_selector("#enlarged figure:nth-child(2) img[style]")
    sizes = "images => images.map(i => [i.width, i.naturalWidth])"
    widths = page.eval_on_selector_all("#enlarged img", sizes)
    assert len(widths) == 2
    assert all(shown == drawn for shown, drawn in widths)
    page.focus("#lightbox-next")
    page.keyboard.press("Enter")
    assert page.inner_text("#lightbox-count") == "4 of 8"
    page.keyboard.press("Escape")
    assert not page.is_visible("#lightbox")


def test_the_strip_shows_every_member_for_one_prompt(page, finished_run):
    members = Front.load(finished_run).members
    page.select_option("#strip-prompt", "1")
    for member in members:
        page.click(f"#strip >> text={member.id.replace('base', 'base model')}")
        assert chosen(page) == member.id
        source = page.get_attribute(".strip-member.is-selected img", "src")
        assert source == page.evaluate(f"pictures('report', '{member.id}')[1]")


def test_the_numbers_shown_are_the_published_ones(page, finished_run):
    policy = Front.load(finished_run).policies[0]
    page.click(f'tr[data-policy="{policy.id}"] th')
    text = page.inner_text("#chosen .measures").replace("−", "-")
    for value, error in zip(policy.report_returns, policy.report_std_error, strict=True):
        assert with_error(abs(value), error) in text  # of a size in -kB the size
    assert "kB" in text


def test_a_click_on_a_point_chooses_it_everywhere(page, finished_run):
    for policy in Front.load(finished_run).policies:
        page.click(f'#front-chart [data-id="{policy.id}"]', force=True)
        assert chosen(page) == page.get_attribute("tr.is-selected", "data-policy") == policy.id
        title = policy.id.replace("base", "base model")
        assert page.inner_text("#pictures-of") == f"{title}, below"


def test_hovering_shows_pictures_returns_and_weights(page):
    page.hover("#front-chart [data-id] >> nth=0", force=True)
    assert page.is_visible("#tip")
    assert page.locator("#tip img").count() == 4
    assert page.locator("#tip dd").count() == 2
    assert "%" in page.get_attribute("#tip .weights", "aria-label")
    page.mouse.move(1, 1)
    assert not page.is_visible("#tip")


def test_arrow_keys_walk_along_the_front(page, finished_run):
    policies = [policy.id for policy in Front.load(finished_run).policies]
    page.focus('#front-chart [tabindex="0"]')
    page.keyboard.press("Home")
    walked = []
    for _ in policies:
        walked.append(chosen(page))
        page.keyboard.press("ArrowRight")
    assert walked == policies
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.dataset.id") == policies[0]


def test_scrubbing_shows_the_policies_found_up_to_a_generation(page, finished_run):
    search = json.loads((finished_run / "search.json").read_text())
    for step in (0, 1, 2, 3):
        page.fill("#generation", str(step))
        dots = page.locator("#search-chart [data-id]").count()
        assert dots == 1 + 3 * step
    assert "generation 2, evolutionary" in page.inner_text("#generation-label")
    last = search["generations"][-1]["offspring"][0]
    page.click(f'#search-chart [data-id="{last["policy"]}"]', force=True)
    names = page.locator("#ancestry b").all_inner_texts()
    assert names[0] == "base model"
    assert len(names) == page.locator("#ancestry li").count() >= 2


def test_playing_runs_through_the_generations(page):
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Play the generations"


def test_the_theme_follows_the_system_and_can_be_switched(page):
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert dark != light
    page.click("#theme")
    assert page.evaluate(background) == dark
    page.click("#theme")
    assert page.evaluate(background) == light


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_and_the_pictures_are_beside_the_slider(page, width):
    page.set_viewport_size({"width": width, "height": WIDTHS[width]})
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)  # until the charts are drawn in their new width
    assert page.evaluate("document.documentElement.scrollWidth") == width
    slider, shown = box(page, "#along"), box(page, "#pictures")
    assert slider["width"] > 0.6 * min(width, 400)
    assert slider["y"] + slider["height"] < WIDTHS[width]
    if width > 320:
        assert shown["y"] + shown["height"] < WIDTHS[width]  # without scrolling
    assert box(page, "#generation")["width"] > 100
    for node in ("nth=0", "nth=-1"):
        page.hover(f"#front-chart [data-id] >> {node}", force=True)
        card = box(page, "#tip")
        assert card["x"] >= 0
        assert card["x"] + card["width"] <= width
    page.mouse.move(1, 1)
    page.set_viewport_size({"width": 1280, "height": 900})


def test_charts_have_named_axes_with_units_and_error_bars(page):
    text = page.inner_text("#front-chart")
    assert "colourfulness [Hasler-Suesstrunk M]" in text
    assert "file size [kB], less is better" in text
    assert page.locator("#front-chart g[aria-label='rule'] line").count() >= 4
    assert page.locator("#predictions figure svg").count() == 2


def test_markup_in_prompts_is_text_in_the_browser(browser, run_copy):
    evil = "</script><img src=x onerror=\"document.title='owned'\">"
    for name in ("front.json", "search.json"):
        record = json.loads((run_copy / name).read_text())
        record["samples"]["prompts"] = [evil] * 8
        (run_copy / name).write_text(json.dumps(record))
    with open_page(browser, write_report(run_copy).resolve().as_uri()) as page:
        assert page.locator("#pictures figcaption >> nth=0").inner_text() == evil
        assert page.locator("img[src='x']").count() == 0
        assert page.title() != "owned"


def test_blends_that_were_measured_are_on_the_slider(browser, run_copy):
    first, second = Front.load(run_copy).policies[:2]
    blend = {
        "id": "blend-1",
        "parts": [
            {"policy": first.id, "coefficient": 0.25},
            {"policy": second.id, "coefficient": 0.75},
        ],
        "weights": [0.5, 0.5],
        "report_returns": np.maximum(first.report_returns, second.report_returns).tolist(),
        "report_std_error": [0.1, 0.1],
    }
    record = json.loads((run_copy / "front.json").read_text())
    (run_copy / "front.json").write_text(json.dumps({**record, "blends": [blend]}))
    samples = run_copy / "samples" / "report"
    shutil.copy(samples / f"{second.id}.webp", samples / "blend-1.webp")
    front = Front.load(run_copy)
    with open_page(browser, write_report(run_copy).resolve().as_uri()) as page:
        for index, member in enumerate(front.members):
            page.fill("#along", str(index))
            assert chosen(page) == member.id
        page.check("input[value=preference]", force=True)
        seen = set()
        for step in range(0, 1001, 20):
            page.fill("#preference", str(step))
            expected = front.pick((step / 1000, 1 - step / 1000), with_blends=True).id
            assert chosen(page) == expected
            seen.add(expected)
        assert "blend-1" in seen
        page.click('tr[data-policy="blend-1"] button')
        origin = page.inner_text("#chosen .origin")
        assert origin == f"blend of {first.id} 25 % and {second.id} 75 %"
        assert page.inner_text("#use code").endswith("--policy blend-1 --out my_adapter")
        lines = page.evaluate("loading(BY_ID.get('blend-1'))").split("\n")
        assert lines[-1] == f'pipe.set_adapters(["{first.id}","{second.id}"], [0.25,0.75])'
        assert len(pictures(page)) == 16
        assert page.inner_text("#ancestry-of") == "blend-1 (of its largest part)"
        assert page.locator("#ancestry b").last.inner_text() == second.id


def test_three_objectives_have_a_triangle_and_axes_to_choose(browser, make_run):
    run = make_run(
        "three",
        "rewards.names=colorfulness,jpeg_compressibility,jpeg_incompressibility",
        "evolution.evolutionary_generations=1",
    )
    front = Front.load(run)
    with open_page(browser, (run / "report.html").resolve().as_uri()) as page:
        for member in front.members:  # in its own place
            place = box(page, f'.triangle [data-id="{member.id}"]')
            page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
            assert chosen(page) == member.id
        page.focus(".triangle")
        before = chosen(page)
        for key in ("ArrowUp", "ArrowLeft", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        assert len(front.members) == 1 or chosen(page) != before
        page.check("input[value=preference]", force=True)
        for k in range(3):
            corner = box(page, f".triangle > circle >> nth={k}")
            page.mouse.click(corner["x"] + 4, corner["y"] + 4)
            weights = page.evaluate("state.weights")
            assert weights[k] == pytest.approx(1, abs=0.05)
            assert chosen(page) == front.pick(weights=weights).id
        page.select_option("#axis-y", "2")
        assert "detail (file size) [kB]" in page.inner_text("#front-chart")


def test_four_objectives_have_a_slider_each(browser, run_copy):
    """The records of a run of two objectives, with every objective twice."""
    for name in ("front.json", "search.json"):
        path = run_copy / name
        path.write_text(json.dumps(doubled(json.loads(path.read_text()))))
    front = Front.load(run_copy)
    with open_page(browser, write_report(run_copy).resolve().as_uri()) as page:
        page.fill("#preference-0", "800")
        page.fill("#preference-1", "100")
        shares = page.evaluate("state.weights")
        assert sum(shares) == pytest.approx(1)
        assert shares[1] == 0.1
        for k in range(4):
            page.fill(f"#preference-{k}", "1000")
            assert chosen(page) == front.pick(weights=np.eye(4)[k]).id


def doubled(value):
    """A record in which every vector of two objectives has four entries."""
    if isinstance(value, dict):
        kept = {"curve", "parts"}  # pairs of another kind
        out = {key: entry if key in kept else doubled(entry) for key, entry in value.items()}
        if "weights" in out:
            out["weights"] = [weight / 2 for weight in out["weights"]]
        return out
    if not isinstance(value, list):
        return value
    if len(value) == 2 and all(isinstance(entry, float | int) for entry in value):
        return value * 2
    if len(value) == 2 and all(isinstance(entry, dict) and "ideal" in entry for entry in value):
        return [{**entry, "name": f"{entry['name']}{k}"} for k in (1, 2) for entry in value]
    return [doubled(entry) for entry in value]
