"""The live app: what it does without its server, and, where gradio is installed, with it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddpo.rewards.answers import Answers
from front import serve as serving
from front.errors import FrontError
from front.front import Front
from front.pictures.live import front_map
from front.pictures.painter import Painter
from front.serve import BLEND, BY_NAME, MAX_IMAGES, POLICY, Studio, told
from front.tables import with_error
from mo_front import main
from tests.support.browser import open_page
from tests.support.paths import ROOT

DOCS = ROOT / "docs" / "report.md"

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None,
    reason="gradio is not installed: pip install -r requires-serve.txt, in another environment",
)


@pytest.fixture(scope="module", name="studio")
def _studio(finished_run):
    front = Front.load(finished_run)
    studio = Studio(front, Painter(front, device="cpu"))
    yield studio
    studio.close()


def test_the_rows_of_a_pass_reach_the_painter(finished_run, monkeypatch, capsys):
    def painter(_, *arguments):
        raise FrontError(f"{arguments}")

    monkeypatch.setattr(serving, "import_gradio", lambda: None)
    monkeypatch.setattr(serving, "Painter", painter)
    assert main(["serve", str(finished_run), "--rows-per-pass", "2"]) == 1
    assert "('', '', 2)" in capsys.readouterr().err


def test_answers_are_looked_at_before_a_model_is_loaded(run_copy, monkeypatch, capsys):
    monkeypatch.setattr(serving, "import_gradio", lambda: None)
    (run_copy / "taste").mkdir()
    (run_copy / "taste" / "taste.json").write_text("{")
    assert main(["serve", str(run_copy), "--model", "/nowhere"]) == 1
    assert "taste.json is damaged" in capsys.readouterr().err


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_one_slider_between_two_objectives_picks_as_the_front_does(studio):
    for second in (0.0, 0.3, 1.0):
        assert studio.choose(POLICY, "", second).id == studio.front.pick((1 - second, second)).id
        parts = studio.choose(BLEND, "", second).parts
        assert parts == studio.front.blend((1 - second, second)).parts
    last = studio.front.members[-1].id
    assert studio.choose(BY_NAME, last, 0.5).id == last


def test_what_is_no_choice_is_explained(studio):
    with pytest.raises(FrontError, match="no policy 'gone' on the front"):
        studio.choose(BY_NAME, "gone", 0.5)
    with pytest.raises(FrontError, match="is no way to choose"):
        studio.choose("by luck", "", 0.5)
    with pytest.raises(FrontError, match="nothing matters to you"):
        studio.choose(POLICY, "", 0.0, 0.0)


def test_a_description_holds_the_published_numbers(studio):
    policy = studio.front.policies[0]
    text = studio.describe(policy)
    assert policy.id in text
    assert with_error(policy.report_returns[0], policy.report_std_error[0]) in text
    assert "nobody has measured" in studio.describe(studio.front.blend((0.5, 0.5)))


def test_pictures_of_both_have_the_same_seeds(studio):
    policy = next(p for p in studio.front.policies if p.id != "base")
    base, chosen = studio.draw(policy, " cat ", 5, 3)
    again, _ = studio.draw(policy, "cat", 6, 1)
    assert len(base) == len(chosen) == 3
    assert np.array_equal(pixels(base)[1], pixels(again)[0])
    assert (pixels(base) != pixels(chosen)).any()


@pytest.mark.parametrize(
    ("prompt", "seed", "num", "message"),
    [
        ("  ", 0, 1, "write what to draw"),
        (None, 0, 1, "write what to draw"),
        ("a" * 3000, 0, 1, "3000 characters"),
        ("cat", -1, 1, "seed must be a whole number from 0"),
        ("cat", 0.5, 1, "seed must be a whole number"),
        ("cat", None, 1, "seed must be a whole number"),
        ("cat", float("nan"), 1, "seed must be a whole number"),
        ("cat", 0, 0, "number of images must be a whole number from 1"),
        ("cat", 0, MAX_IMAGES + 1, f"from 1 to {MAX_IMAGES}"),
    ],
)
def test_a_bad_request_is_explained(studio, prompt, seed, num, message):
    with pytest.raises(FrontError, match=message):
        studio.draw(studio.front.policies[0], prompt, seed, num)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ((0, 1.0, ""), "steps must be a whole number from 1"),
        ((2.5, 1.0, ""), "steps must be a whole number"),
        ((4, 0.5, ""), "guidance must be from 1"),
        ((4, float("nan"), ""), "guidance must be from 1"),
        ((4, 1.0, "a" * 3000), "3000 characters"),
    ],
)
def test_a_bad_wish_is_explained(studio, wishes, message):
    with pytest.raises(FrontError, match=message):
        studio.draw(studio.front.policies[0], "cat", 0, 1, *wishes)


class FakePainter:
    """Draws what it is asked for."""

    def __init__(self, draw):
        self.draw = draw


def test_too_little_memory_is_explained(studio):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError

    full = Studio(studio.front, FakePainter(refuse))
    with pytest.raises(FrontError, match="fewer images at a time"):
        full.draw(studio.front.policies[0], "cat", 0, 1)
    full.close()


def test_two_people_draw_one_after_the_other(studio):
    drawing, most = [], []

    def slowly(member, prompts, seeds, **_):
        drawing.append(member)
        most.append(len(drawing))
        time.sleep(0.02)
        drawing.pop()
        return torch.zeros(len(prompts), 3, 4, 4, dtype=torch.uint8)

    slow = Studio(studio.front, FakePainter(slowly))
    with ThreadPoolExecutor(4) as people:
        for seed in range(4):
            people.submit(slow.draw, studio.front.policies[0], "cat", seed, 1)
    slow.close()
    assert most == [1] * 8


def test_the_base_model_draws_the_same_request_once(studio):
    drawn = []

    def draw(member, prompts, seeds, **changes):
        drawn.append((member, *seeds, changes))
        return torch.zeros(len(prompts), 3, 4, 4, dtype=torch.uint8)

    app, (first, second) = Studio(studio.front, FakePainter(draw)), studio.front.policies[:2]
    app.draw(first, "cat", 0, 1)
    app.draw(second, "cat", 0, 1)
    app.draw(second, "cat", 0, 1, 3, 2.0, "blurry")
    app.close()
    wishes = {"num_inference_steps": 3, "guidance_scale": 2.0, "negative_prompt": "blurry"}
    assert drawn == [
        (None, 0, {}),
        (first, 0, {}),
        (second, 0, {}),
        (None, 0, wishes),
        (second, 0, wishes),
    ]


def test_pictures_say_what_they_were_drawn_from(studio):
    policy = next(p for p in studio.front.policies if p.id != "base")
    base, chosen = studio.draw(policy, "cat", 5, 2, 2, 3.0, "dog")
    text = chosen[1].info["parameters"]
    assert text.startswith("cat\nNegative prompt: dog\nSteps: 2, Sampler: Euler a, CFG scale: 3, ")
    assert "Seed: 6" in text
    assert f"Policy: {policy.id}" in text
    assert "Policy: base model" in base[0].info["parameters"]


def test_a_script_names_a_member_by_weights_or_by_name(studio):
    front = studio.front
    assert studio.named("").id == front.pick((0.5, 0.5)).id
    assert studio.named("0.2,0.8").id == front.pick((0.2, 0.8)).id
    assert studio.named(front.members[0].id).id == front.members[0].id
    for wrong in ("gone", "0.2,0.8,0"):
        with pytest.raises(FrontError):
            studio.named(wrong)


def test_the_map_rings_what_is_chosen(studio):
    front = studio.front
    for member in (front.policies[0], front.blend((0.5, 0.5))):
        svg = front_map(front, member)
        assert f"{member.id} is ringed" in svg
        assert ("guessed" in svg) == (member.report_returns is None)
        assert svg.count('class="policy"') == len(front.policies)


def test_the_file_is_the_adapter(studio):
    policy = next(p for p in studio.front.policies if p.id != "base")
    file = studio.adapter_file(policy)
    assert file.name == f"finished_{policy.id}.safetensors"
    ours, theirs = load_file(file), load_file(policy.file)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kohya = studio.adapter_file(policy, "kohya")
    assert any(name.endswith(".alpha") for name in load_file(kohya))
    with pytest.raises(FrontError, match="no format; there are diffusers, kohya"):
        studio.adapter_file(policy, "zip")


def test_an_adapter_that_is_gone_is_explained(run_copy):
    front = Front.load(run_copy)
    policy = next(p for p in front.policies if p.id != "base")
    shutil.rmtree(policy.adapter)
    studio = Studio(front, Painter(front, device="cpu"))
    with pytest.raises(FrontError, match=f"adapter of {policy.id} is missing"):
        studio.draw(policy, "cat", 0, 1)
    other = next(p for p in front.policies if p is not policy)
    assert len(studio.draw(other, "cat", 0, 1)[1]) == 1  # the app goes on
    studio.close()


def test_errors_become_messages_of_the_page(caplog):
    class FakeGradio:
        class Error(Exception):
            def __init__(self, message, **_):
                super().__init__(message)

    def explain():
        raise FrontError("write what to draw")

    def fail():
        raise ZeroDivisionError("secret")

    with pytest.raises(FakeGradio.Error, match="write what to draw"):
        told(FakeGradio, explain)()
    with pytest.raises(FakeGradio.Error, match="did not work: ZeroDivisionError") as error:
        told(FakeGradio, fail)()
    assert "secret" not in str(error.value)
    assert "secret" in caplog.text


def test_without_gradio_the_command_says_how_to_get_it(finished_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", str(finished_run)]) == 1
    assert "pip install -r requires-serve.txt" in capsys.readouterr().err


@pytest.fixture(scope="module", name="live")
def _live(make_run):
    """Address of the app over a run of the embedded model, its front, and where answers go."""
    from front.serve import build_app, start
    from front.taste.desk import Desk
    from front.taste.open import open_quiz
    from front.taste.source import Source

    run = make_run(
        "embedded",
        "pretrained.model=emoji-sd",
        "adapter.alpha=4.0",
        "prompts.train=emoji_animals",
        "prompts.report=emoji_report",
    )
    front = Front.load(run)
    painter = Painter(front, device="cpu")
    studio, answers = Studio(front, painter), run / "taste"
    desk = Desk(lambda: open_quiz(answers, lambda: Source.of_front(front, painter), device="cpu"))
    app = build_app(studio)
    yield start(app, desk=desk, css=studio.style()), front, answers
    app.close()
    desk.close()
    studio.close()


@needs_gradio
@pytest.mark.filterwarnings("default")
def test_a_script_draws_with_the_embedded_model(live):
    from gradio_client import Client
    from gradio_client.exceptions import AppError
    from PIL import Image

    address, front, _ = live
    assert address.startswith("http://127.0.0.1:")
    client = Client(address, verbose=False, analytics_enabled=False)
    code = re.search(r"```python\n(from gradio_client.*?)```", DOCS.read_text(), re.DOTALL)[1]
    names = {}
    exec(compile(code.replace("http://127.0.0.1:7860", address), str(DOCS), "exec"), names)
    policy = front.pick((0.5, 0.5)).id
    assert names["chosen"]["label"] == policy
    for part in (names["base"][0], names["chosen"]["value"][0]):
        with Image.open(part["image"]) as picture:
            assert picture.size == (32, 32)
            assert picture.info["parameters"].startswith("panda\n")
    assert f"embedded_{policy}.safetensors" in str(names["file"])
    with pytest.raises(AppError, match="write what to draw"):
        client.predict(" ", api_name="/draw")
    client.close()


@needs_gradio
@pytest.mark.browser
@pytest.mark.filterwarnings("default")
def test_the_page_opens_with_pictures_and_asks_only_its_own_server(live, browser):
    address, front, _ = live
    pictures = "document.querySelectorAll('.grid-container img').length === {}"
    with open_page(browser, address, (address, "data:", "blob:")) as page:
        page.wait_for_function(pictures.format(8))
        policy = front.pick((0.5, 0.5)).id
        assert page.get_by_role("heading", name=policy).is_visible()
        assert page.get_by_role("img", name=f"{policy} is ringed").is_visible()
        first = page.locator(".grid-container img").first
        assert first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{folder}/serve.png", full_page=True)

        page.get_by_role("button", name=f"Make the file of {policy}").click()
        page.get_by_text(f"embedded_{policy}").first.wait_for()
        page.get_by_label("Prompt", exact=True).fill("")
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_text("write what to draw").first.wait_for()
        page.wait_for_function(pictures.format(8))  # kept through the error, as is the file
        assert page.get_by_text(f"embedded_{policy}").first.is_visible()

        page.get_by_label("Prompt", exact=True).fill("cat")
        slider = page.get_by_label("range slider for What matters to you?")
        slider.fill("1")
        slider.dispatch_event("pointerup")
        end = front.pick((0.0, 1.0)).id
        page.get_by_role("button", name=f"Make the file of {end}").wait_for()
        if end != policy:
            assert page.get_by_text(f"embedded_{policy}").count() == 0


@needs_gradio
@pytest.mark.browser
@pytest.mark.filterwarnings("default")
def test_a_tab_asks_what_you_like(live, browser):
    address, front, folder = live
    with open_page(browser, address, (address, "data:", "blob:")) as page:
        page.get_by_role("heading", name="How far can").wait_for()
        assert not folder.exists()  # nothing is opened for those who do not look
        page.get_by_role("tab", name="Say what you like").click()
        quiz = page.frame_locator("#taste")

        def after(number):
            quiz.locator(f"body[data-answers='{number}']").wait_for()

        after(0)
        page.keyboard.press("ArrowLeft")  # the tab has the focus
        after(1)
        quiz.locator("#right").click()
        after(2)
        page.keyboard.press("ArrowDown")
        after(3)
        page.keyboard.press("Backspace")
        after(2)
        if screenshots := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{screenshots}/serve_taste.png")
        page.get_by_role("tab", name="Choose and draw").click()
        assert page.get_by_label("Prompt", exact=True).is_visible()
        page.get_by_role("tab", name="Say what you like").click()
        page.keyboard.press("ArrowRight")  # the same question, and the focus again
        after(3)
    answers = Answers.read(folder).answers
    assert [answer.choice for answer in answers] == ["left", "right", "right"]
    shown = [each for answer in answers for each in (answer.left, answer.right)]
    assert {each.run for each in shown} == {str(front.path)}
    assert {each.policy for each in shown} <= {"base", *(policy.id for policy in front.policies)}


@needs_gradio
@pytest.mark.filterwarnings("default")
def test_the_tab_refuses_what_its_page_does_not_send(live):
    address, _, folder = live
    before = Answers.read(folder) if folder.exists() else None
    answer = json.dumps({"number": len(before.answers) if before else 0, "choice": "left"})
    for kind, body in (("text/plain", answer), ("application/json", answer + " " * 1000)):
        headers = {"Content-Type": kind}
        request = urllib.request.Request(f"{address}taste/answer", body.encode(), headers)
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(request, timeout=60)
        refused.value.close()
    assert (Answers.read(folder) if folder.exists() else None) == before
