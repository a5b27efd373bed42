"""Runs the real client of the Hugging Face hub against a local server."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from levitax.weights import save, state_dict

from .serving import serving
from .test_shards import INDEX, write_shards


COMMIT = "0123456789abcdef0123456789abcdef01234567"


BROKEN = b"answered with an error"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that a download uses: `/<repository>/resolve/<revision>/<file>`."""

    def __init__(self, repositories: dict[str, dict[str, bytes]], log: list[str], *arguments: Any):
        self.repositories, self.log = repositories, log
        super().__init__(*arguments)

    def do_HEAD(self):
        self.respond(with_body=False)

    def do_GET(self):
        self.respond(with_body=True)

    def respond(self, *, with_body: bool) -> None:
        self.log.append(f"{self.command} {self.path}")
        owner, name, kind, revision, *file = self.path.strip("/").split("/")
        files = self.repositories.get(f"{owner}/{name}")
        if files is None or kind != "resolve" or revision not in ("main", "v1", COMMIT):
            code = "RepoNotFound" if files is None else "RevisionNotFound"
            self.reply(404, {"X-Error-Code": code}, b"", with_body)
        elif "/".join(file) not in files:
            self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"", with_body)
        elif files["/".join(file)] is BROKEN:
            self.reply(500, {}, b"", with_body)
        else:
            content = files["/".join(file)]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.reply(200, {"ETag": etag, "X-Repo-Commit": COMMIT}, content, with_body)

    def reply(self, status: int, headers: dict[str, str], body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def repositories(make, randomise, tmp_path) -> dict[str, dict[str, bytes]]:
    """Repositories in the form of timm and of transformers, and others."""
    path = tmp_path / "model.safetensors"

    def written(layout, **sizes):
        model, state = randomise(*make(**sizes))
        if layout == "levitax":
            save(path, model, state)
            return path.read_bytes()
        # Other libraries write no levitax header.
        return safetensors.numpy.save(state_dict(model, state, layout=layout))

    timm = {"architecture": "levit_tiny", "pretrained_cfg": {"input_size": [3, 16, 24]}}
    transformers = {"image_size": [96, 64], "drop_path_rate": 0.1, "architectures": ["LevitForImageClassification"]}
    model, state = randomise(*make(image_size=(16, 24)))
    write_shards(tmp_path, state_dict(model, state, layout="timm"), count=2)
    sharded = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    sharded["config.json"] = json.dumps(timm).encode()
    wide, tall = {"image_size": (16, 24)}, {"image_size": (96, 64), "patch_size": 16, "distillation": False}
    return {
        "timm/tiny": {
            "model.safetensors": written("timm", **wide),
            "pytorch_model.bin": b"never fetched",
            "config.json": json.dumps(timm).encode(),
        },
        "facebook/tiny": {
            "model.safetensors": written("transformers", **tall),
            "config.json": json.dumps(transformers).encode(),
        },
        "someone/sharded": sharded,
        "someone/incomplete": {INDEX: sharded[INDEX]},
        "someone/plain": {"model.safetensors": written("levitax")},
        "someone/other": {"README.md": b"nothing"},
        "someone/broken": {"model.safetensors": written("timm"), "config.json": BROKEN},
    }


@pytest.fixture
def hub(repositories) -> Iterator[tuple[str, list[str]]]:
    """The address of the hub, and the log of its requests."""
    log: list[str] = []
    with serving(functools.partial(Hub, repositories, log)) as address:
        yield address, log


@pytest.fixture
def fetch(tmp_path):
    """Loads from a hub in a new process, because the client reads its settings when it is imported."""

    def fetch(address: str, *arguments: str, **settings: str) -> str:
        code = (
            "import sys, time, levitax\n"
            # The client sleeps before it tries again, 25 s in all.
            "time.sleep = lambda seconds: None\n"
            "try:\n"
            "    model, state = levitax.load(sys.argv[1], revision=sys.argv[2] if sys.argv[2:] else None)\n"
            "    print(model.config.image_size, model.config.distillation, model.config.drop_path)\n"
            "except OSError as error:\n"
            "    print(type(error).__name__, error)\n"
        )
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", **settings}
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=os.environ | settings, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return fetch


def test_a_repository_is_fetched_once_and_then_read_offline(hub, fetch):
    address, log = hub
    assert fetch(address, "timm/tiny") == "(16, 24) True 0.0"
    assert any(line.startswith("GET") and line.endswith("model.safetensors") for line in log)
    assert not any("pytorch_model.bin" in line for line in log)
    log.clear()
    assert fetch(address, "timm/tiny", HF_HUB_OFFLINE="1") == "(16, 24) True 0.0"
    assert log == []


@pytest.mark.slow
def test_an_unreachable_hub_is_read_from_the_cache(hub, fetch):
    for address in (hub[0], "http://127.0.0.1:9"):
        assert fetch(address, "timm/tiny") == "(16, 24) True 0.0"


@pytest.mark.slow
def test_a_config_of_transformers_adds_fields_that_shapes_do_not_show(hub, fetch):
    assert fetch(hub[0], "facebook/tiny") == "(96, 64) False 0.1"


@pytest.mark.slow
def test_shards_are_fetched_and_then_read_offline(hub, fetch):
    address, log = hub
    assert fetch(address, "someone/sharded") == "(16, 24) True 0.0"
    assert sum(line.startswith("GET") and line.endswith(".safetensors") for line in log) == 2
    assert fetch(address, "someone/sharded", HF_HUB_OFFLINE="1") == "(16, 24) True 0.0"


@pytest.mark.slow
def test_shards_that_a_repository_lacks_are_named(hub, fetch):
    answer = fetch(hub[0], "someone/incomplete")
    shards = "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors"
    assert answer.startswith(f"FileNotFoundError The repository 'someone/incomplete' on the hub lacks {shards}, which")


@pytest.mark.slow
def test_a_revision_is_fetched(hub, fetch):
    address, log = hub
    assert fetch(address, "someone/plain", "v1") == "(16, 16) True 0.0"
    assert any("/resolve/v1/" in line for line in log)
    answer = fetch(address, "someone/plain", "v2")
    assert answer.startswith("FileNotFoundError") and "with a revision 'v2'" in answer


@pytest.mark.slow
def test_a_repository_that_does_not_exist(hub, fetch):
    answer = fetch(hub[0], "nobody/nothing")
    assert answer.startswith("FileNotFoundError There is neither a folder `")
    assert f"`{Path('nobody/nothing').absolute()}` nor a repository 'nobody/nothing' on the hub" in answer


@pytest.mark.slow
def test_a_config_that_cannot_be_fetched_is_an_error(hub, fetch):
    # Without the config, levitax could load a wrong image size.
    answer = fetch(hub[0], "someone/broken")
    assert answer.startswith("ConnectionError") and "`config.json` of the repository 'someone/broken' is not" in answer


@pytest.mark.slow
def test_a_repository_without_weights(hub, fetch):
    answer = fetch(hub[0], "someone/other")
    assert "'someone/other' on the hub holds none of model.safetensors, pytorch_model.bin" in answer


@pytest.mark.parametrize(
    "settings",
    (pytest.param({"HF_HUB_OFFLINE": "1"}, id="offline"), pytest.param({}, id="unreachable", marks=pytest.mark.slow)),
)
def test_without_a_network_the_file_to_fetch_is_named(fetch, settings):
    answer = fetch("http://127.0.0.1:9", "timm/levit_256.fb_dist_in1k", **settings)
    name = "timm/levit_256.fb_dist_in1k"
    assert answer.startswith(
        f"ConnectionError There is no folder `{Path(name).absolute()}`; `model.safetensors` of the"
    )
    assert f"repository '{name}' is not in the cache, and the hub is out of reach" in answer
    assert "fetch http://127.0.0.1:9/timm/levit_256.fb_dist_in1k/resolve/main/model.safetensors and the files" in answer
    assert "Put them into one folder here, and pass the path of that folder instead of the name" in answer
