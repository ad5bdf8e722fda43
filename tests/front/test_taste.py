"""The quiz that learns what somebody likes, and its page."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from config.settings.errors import UserError
from ddpo.rewards.answers import CHANCE, UNCERTAINTY, Answers
from ddpo.rewards.clip import load_clip
from ddpo.rewards.taste import learn
from front.errors import ChoiceError, FrontError
from front.front import Front
from front.pictures.painter import Painter
from front.taste.desk import Desk, may_post
from front.taste.page import Page
from front.taste.quiz import Quiz
from front.taste.source import Source
from mo_front import main
from tests.support.browser import open_page
from tests.support.tastes import click, draw_colours, hidden_taste

HIDDEN = hidden_taste(5)


def likes(embed):
    return embed @ HIDDEN


@pytest.fixture(scope="module", name="clip")
def _clip():
    return load_clip("emoji-clip", torch.device("cpu"), "float32")


@pytest.fixture(name="quiz")
def _quiz(clip, tmp_path):
    return make_quiz(clip, tmp_path)


def make_quiz(clip, tmp_path, draw=draw_colours, seed=0):
    return Quiz(tmp_path / "ada", clip, "emoji-clip", draw, seed)


def test_answers_are_saved_with_the_origins_of_their_pictures(quiz):
    click(quiz, likes, 3)
    data = json.loads((quiz.folder / "taste.json").read_text())
    assert [answer["choice"] for answer in data["answers"]] == [
        answer.choice for answer in quiz.answers.answers
    ]
    left = data["answers"][0]["left"]
    assert {"model", "run", "policy", "prompt", "seed", "sampler"} <= set(left)
    assert data["answers"][0]["right"]["prompt"] == left["prompt"]
    assert len(list((quiz.folder / "pictures").iterdir())) == 6


def test_first_pairs_and_every_third_are_by_chance_and_no_picture_comes_twice(quiz):
    click(quiz, likes, 16)
    asked = [answer.asked_by for answer in quiz.answers.answers]
    assert asked == [CHANCE] * 11 + [UNCERTAINTY] * 2 + [CHANCE] + [UNCERTAINTY] * 2
    assert len(set(quiz.answers.groups)) == 16


def test_an_undone_answer_is_forgotten_and_asked_again(quiz):
    click(quiz, likes, 2)
    before, asked = quiz.answers, quiz.pair()
    last = before.answers[-1]
    quiz.undo()
    assert Answers.read(quiz.folder).answers == before.answers[:1]
    assert len(list((quiz.folder / "pictures").iterdir())) == 2
    assert (quiz.pair().left.shown, quiz.pair().right.shown) == (last.left, last.right)
    quiz.answer(1, "neither")
    assert quiz.answers.answers[-1].choice == "neither"
    assert quiz.pair() is asked
    for _ in range(3):  # the last one finds nothing to undo
        quiz.undo()
    assert Answers.read(quiz.folder).answers == ()


def test_an_answer_that_comes_twice_counts_once(quiz):
    quiz.fill()
    quiz.pair()
    quiz.answer(0, "left")
    quiz.answer(0, "left")
    assert quiz.progress().num_answers == 1
    with pytest.raises(ChoiceError, match="'both' is not left, right, neither"):
        quiz.answer(1, "both")


def test_a_quiz_is_continued_where_it_was_left_and_can_be_undone(quiz, clip, tmp_path):
    click(quiz, likes, 12)
    again = make_quiz(clip, tmp_path)
    assert again.answers == quiz.answers
    assert again.progress() == quiz.progress()
    again.undo()
    assert again.pair().left.shown == quiz.answers.answers[-1].left
    click(again, likes, 2)
    assert len(set(Answers.read(quiz.folder).groups)) == 13


def test_it_says_how_much_it_has_learnt(quiz):
    assert quiz.progress().accuracy is None
    click(quiz, likes, 14)
    known, learnt = quiz.progress(), learn(Answers.read(quiz.folder), quiz.embeds)
    assert known.num_answers == 14
    assert 60 <= known.num_wanted <= 400
    assert known.accuracy == learnt.checked.accuracy
    assert known.by_chance == learnt.by_chance.accuracy
    assert learnt.by_chance.num_choices == 12
    assert 0.5 < known.confidence < 1
    assert known.is_ready == (learnt.foretold.p_value < 0.05)


def test_a_folder_with_something_else_is_left_alone(clip, tmp_path):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "novel.txt").write_text("Chapter 1")
    with pytest.raises(UserError, match=r"taste\.json cannot be read"):
        make_quiz(clip, tmp_path)


def test_what_keeps_pictures_from_being_drawn_is_told(clip, tmp_path):
    def draw(*_):
        raise FrontError("the disk is full")

    quiz = make_quiz(clip, tmp_path, draw)
    threading.Thread(target=quiz.keep_filled).start()
    with pytest.raises(FrontError, match="the disk is full"):
        quiz.pair()


def test_a_run_shows_its_policies_and_its_base_model(finished_run):
    source = Source.open(str(finished_run), device="cpu")
    drawn = source.draw(np.random.default_rng(0), 2, 3)
    assert len(drawn) == 6
    assert len({each.shown.file for each in drawn}) == 6
    assert len({each.shown.policy for each in drawn}) > 1
    prompts = {each.shown.prompt for each in drawn}
    assert len(prompts) == 2
    assert prompts <= set("abcd")  # the training prompts
    first = drawn[0].shown
    assert first.run == str(finished_run)
    assert first.sampler["eta"] == 1.0
    again = Source.open(str(finished_run), device="cpu").draw(np.random.default_rng(0), 2, 3)
    assert [each.shown for each in again] == [each.shown for each in drawn]
    assert again[0].picture.tobytes() == drawn[0].picture.tobytes()


def test_the_newest_run_is_asked_about_and_its_painter_is_shared(finished_run, monkeypatch):
    monkeypatch.setattr(
        "front.taste.source.named_run", lambda path: finished_run if str(path) == "latest" else path
    )
    source = Source.open("latest", device="cpu")
    front = Front.load(finished_run)
    shared = Source.of_front(front, Painter(front, device="cpu"))
    drawn = [each.draw(np.random.default_rng(0), 1, 2) for each in (source, shared)]
    assert [each.shown for each in drawn[0]] == [each.shown for each in drawn[1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "neither a run directory nor a model"),
        (["emoji-sd", "--prompts", "nowhere"], "--prompts=nowhere"),
        (["emoji-sd", "--clip", "./nowhere"], "--clip=./nowhere cannot be loaded"),
        (["."], "is not a run directory"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, capsys, arguments, message):
    assert main(["taste", *arguments, "--out", str(tmp_path / "ada")]) in {1, 2}
    assert message in capsys.readouterr().err


def test_a_desk_opens_its_quiz_when_it_is_wanted(quiz):
    tries = []

    def open_quiz():
        tries.append(1)
        if len(tries) == 1:
            raise FrontError("the model is gone")
        return quiz

    desk = Desk(open_quiz)
    assert desk.get("").body.startswith(b"<!doctype html>")
    assert not tries
    assert json.loads(desk.get("state").body) == {"problem": "the model is gone"}
    assert json.loads(desk.get("state").body)["number"] == 0  # it was mended meanwhile
    desk.get("state")
    assert len(tries) == 2
    assert desk.post("anything", b"{}").status == 404
    desk.close()
    Desk(open_quiz).close()
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("kind", "length", "is_read"),
    [
        ("application/json", "1000", True),
        ("Application/JSON; charset=utf-8", "2", True),
        ("application/json", "1001", False),
        ("application/json", "", False),
        ("application/json", "-1", False),
        ("text/plain", "2", False),
        ("", "2", False),
    ],
)
def test_only_short_json_is_read(kind, length, is_read):
    assert may_post(kind, length) == is_read


@pytest.fixture(name="page")
def _page(quiz):
    page = Page(quiz)
    yield page
    page.close()


def get(page, path, headers=None, body=None):
    """Status and content of a request."""
    request = urllib.request.Request(page.address + path, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_server_answers_its_own_page_alone(page, quiz):
    state = json.loads(get(page, "state")[1])
    answer = json.dumps({"number": 0, "choice": "left"}).encode()
    assert get(page, "answer", {"Content-Type": "text/plain"}, answer)[0] == 403
    assert get(page, "state", {"Host": "evil.example"})[0] == 403
    assert get(page, "pictures/..%2ftaste.json")[0] == 404
    assert get(page, f"pictures/{state['left']}")[1].startswith(b"\x89PNG")
    as_json = {"Content-Type": "application/json"}
    assert get(page, "answer", as_json, b"{}")[0] == 400
    assert get(page, "answer", as_json, b"[")[0] == 400
    status, content = get(page, "answer", as_json, answer)
    assert (status, json.loads(content)["number"]) == (200, 1)
    with pytest.raises(FrontError, match="cannot listen on"):
        Page(quiz, int(page.address.rsplit(":", 1)[1].strip("/")))


@pytest.mark.browser
def test_a_person_clicks_through_it(browser, page, quiz):
    allowed = (page.address, "data:")
    with open_page(browser, page.address, allowed) as tab:
        tab.wait_for_selector("#left:enabled")
        shown = quiz.pair()
        assert shown.left.shown.file in tab.get_attribute("#left img", "src")
        assert shown.left.shown.prompt in tab.inner_text("h1")

        def after(number):
            tab.wait_for_selector(f"body[data-answers='{number}']")

        tab.click("#left")
        after(1)
        tab.keyboard.press("ArrowRight")
        after(2)
        tab.keyboard.press("ArrowDown")
        after(3)
        choices = [answer.choice for answer in Answers.read(quiz.folder).answers]
        assert choices == ["left", "right", "neither"]
        assert "3 of about 60; too early" in tab.inner_text("#learnt")
        tab.keyboard.press("Backspace")
        after(2)
        last = quiz.pair().left.shown.file
        tab.click("#undo")
        after(1)
        tab.click("#neither")
        after(2)
        tab.click("#right")
        after(3)
        answers = Answers.read(quiz.folder).answers
        assert [answer.choice for answer in answers] == ["left", "neither", "right"]
        assert answers[2].left.file == last
        while quiz.progress().num_answers < 12:
            number = quiz.progress().num_answers
            tab.keyboard.press("ArrowLeft")
            after(number + 1)
        assert "of your choices" in tab.inner_text("#learnt")
        background = "getComputedStyle(document.body).backgroundColor"
        tab.emulate_media(color_scheme="dark")
        dark = tab.evaluate(background)
        tab.emulate_media(color_scheme="light")
        assert tab.evaluate(background) != dark
        tab.set_viewport_size({"width": 360, "height": 740})
        assert tab.evaluate("document.documentElement.scrollWidth") == 360
