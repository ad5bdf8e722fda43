"""Pushing to a hub: a fake one on loopback receives what a stranger can use."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file

import mo_front
from front import Front
from front.errors import ChoiceError, FrontError
from front.hub import copy_front, push
from run.samples import read_samples
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe

REPO = "someone/a-front"


class FakeHub(ThreadingHTTPServer):
    """The part of a model hub that an upload needs."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.created, self.files, self.tokens, self.refuse = [], {}, set(), None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers the calls of create_repo and upload_folder."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        hub = self.server
        hub.tokens.add(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if hub.refuse is not None:
            return self.answer({"error": "no"}, hub.refuse)
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            return self.answer({"url": f"{hub.url}/{REPO}", "id": REPO})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == f"/api/models/{REPO}/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if self.path == f"/api/models/{REPO}/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    hub.files[entry["value"]["path"]] = content
            url = f"{hub.url}/{REPO}/commit/0123"
            return self.answer({"success": True, "commitUrl": url, "commitOid": "0123"})
        return self.answer({"error": self.path}, 404)

    def do_GET(self):
        if self.server.refuse is None and self.path.startswith(f"/api/models/{REPO}"):
            return self.answer({"id": REPO, "sha": "0", "siblings": []})
        return self.answer({"error": self.path}, 404)

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(name="hub")
def _hub():
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


@pytest.fixture(name="api")
def _api(hub):
    return HfApi(endpoint=hub.url, token="hf_secret")


def received(hub, folder):
    """The files that a stranger would download."""
    for name, content in hub.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_whole_front_arrives_as_a_run_that_loads_and_draws(finished_run, hub, api, tmp_path):
    front = Front.load(finished_run)
    assert push(front, None, REPO, api=api) == f"{hub.url}/{REPO}/commit/0123"
    assert hub.created[0]["name"] == "a-front"
    assert hub.tokens == {"Bearer hf_secret"}
    copy = Front.load(received(hub, tmp_path))
    assert [policy.id for policy in copy.policies] == [policy.id for policy in front.policies]
    assert copy.pick(weights=(0.5, 0.5)).id == front.pick(weights=(0.5, 0.5)).id
    ours, theirs = make_tiny_pipe(), make_tiny_pipe()
    front.blend((0.4, 0.6)).apply(ours)
    copy.blend((0.4, 0.6)).apply(theirs)
    images = [draw_with_diffusers(pipe, ["a"], [1]) for pipe in (ours, theirs)]
    assert torch.equal(*images)
    assert read_samples(tmp_path, "report", "base", 4)
    card = ModelCard.load(tmp_path / "README.md")
    assert f'load_lora_weights("{REPO}", subfolder="adapters/' in card.text
    assert f"A Pareto set of {len(front.policies)} LoRA adapters" in card.text
    for name in ("README.md", "config.json", "front.json"):
        assert str(finished_run.parents[1]).encode() not in hub.files[name]


def test_of_settings_no_path_and_no_host_is_shared(finished_run, tmp_path, monkeypatch):
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    front = Front.load(finished_run)
    given = {
        "pretrained": {"lora": "/home/me/style.safetensors", "single_file_config": "/home/me/sd15"},
        "rewards": {
            "names": ["/home/me/x.py:warmth", "rewards/mine.py:calm", "pick_score", "far"],
            "remotes": ["far=http://me:secret@inside:8000/score"],
            "sources": ["clip_score.clip=owner/name", "diversity.clip=/home/me/clip"],
        },
        "guards": {"names": ["/home/me/x.py:cold"]},
        "sample": {"negative_prompt": "blurred, " * 500},
    }
    settings = {**front.settings, **{k: {**front.settings[k], **v} for k, v in given.items()}}
    (tmp_path / "copy").mkdir()
    local = dataclasses.replace(front, config=dataclasses.replace(front.config, settings=settings))
    copy_front(local, tmp_path / "copy")
    shared = Front.load(tmp_path / "copy").settings
    assert shared["pretrained"]["lora"] == "style.safetensors"
    assert shared["pretrained"]["single_file_config"] == "sd15"
    assert shared["rewards"]["names"] == ["x.py:warmth", "mine.py:calm", "pick_score", "far"]
    assert shared["rewards"]["remotes"] == []
    assert shared["rewards"]["sources"] == ["clip_score.clip=owner/name", "diversity.clip=clip"]
    assert shared["guards"]["names"] == ["x.py:cold"]
    assert shared["sample"] == settings["sample"]


def test_a_member_of_no_weights_is_refused_not_the_whole_front_sent(finished_run, capsys):
    arguments = ["push", str(finished_run), "--member", "--repo", REPO, "--dry_run"]
    assert mo_front.main(arguments) == 2
    assert "--member goes with --weights alone" in capsys.readouterr().err


def test_one_adapter_arrives_with_its_card(finished_run, hub, api, tmp_path):
    front = Front.load(finished_run)
    policy = front.pick(weights=(1, 0))
    push(front, policy, REPO, is_private=True, api=api)
    assert hub.created[0]["visibility"] == "private"
    weights = "pytorch_lora_weights.safetensors"
    folder = received(hub, tmp_path)
    ours, theirs = load_file(policy.file), load_file(folder / weights)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    card = (folder / "README.md").read_text()
    assert f'load_lora_weights("{REPO}", weight_name="{weights}")' in card


def test_a_hub_that_refuses_is_quoted(finished_run, hub, api):
    hub.refuse = 403
    with pytest.raises(FrontError, match=rf"{REPO} could not be uploaded: .*403"):
        push(Front.load(finished_run), None, REPO, api=api)
    assert hub.files == {}


def test_a_hub_that_is_away_is_a_clear_error(finished_run, hub):
    hub.server_close()
    api = HfApi(endpoint="http://127.0.0.1:9", token="hf_secret")
    with pytest.raises(FrontError, match="could not be uploaded"):
        push(Front.load(finished_run), None, REPO, api=api)


def test_without_a_token_nothing_is_tried(finished_run, monkeypatch, capsys):
    monkeypatch.setattr("front.hub.get_token", lambda: None)
    assert mo_front.main(["push", str(finished_run), "--repo", REPO]) == 1
    assert "there is no token for the hub: log in with `hf auth login`" in capsys.readouterr().err


def test_an_impossible_name_is_refused_before_anything_else(finished_run):
    with pytest.raises(ChoiceError, match="--repo=a/b/c"):
        push(Front.load(finished_run), None, "a/b/c")


def test_a_dry_run_lists_the_files_and_sends_nothing(finished_run, monkeypatch, capsys):
    monkeypatch.setattr("front.hub.HfApi", None)
    assert mo_front.main(["push", str(finished_run), "--repo", REPO, "--dry_run"]) == 0
    out = capsys.readouterr().out
    names = {line.split()[-1] for line in out.splitlines()}
    assert {"README.md", "config.json", "front.json"} <= names
    for policy in Front.load(finished_run).policies:
        assert f"adapters/{policy.id}/{policy.file.name}" in names
    assert not any(Path(name).suffix == ".json" and "checkpoints" in name for name in names)
    assert f"nothing was sent to {REPO}" in out
