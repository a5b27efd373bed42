"""Uploads with the real client of the Hugging Face hub to a local server."""

import base64
import functools
import http.server
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import levitax
from levitax.data import Preprocessing

from ..equality import tree_equal
from .serving import serving


PREPROCESSING = Preprocessing(image_size=16, class_names=("ant", "bee", "c|t", "dog", "elk"))


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub that an upload uses."""

    def __init__(self, files: dict[str, bytes], *arguments: Any):
        self.files = files
        super().__init__(*arguments)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/you/flowers"
        if self.headers.get("Authorization") != "Bearer right":
            self.reply(401, {"error": "Invalid token"})
        elif self.path == "/api/repos/create":
            self.reply(200, {"url": address})
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in paths]
            self.reply(200, {"files": modes})
        elif self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            for value in (line["value"] for line in lines if line["key"] == "file"):
                self.files[value["path"]] = base64.b64decode(value["content"])
            self.reply(200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/commit/{'0' * 40}"})
        else:
            self.reply(200, {"errors": [], "warnings": []})

    def do_GET(self):
        self.reply(200, {"id": "you/flowers", "sha": "0" * 40, "siblings": []})

    def reply(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of the hub, and the files that it received."""
    files: dict[str, bytes] = {}
    with serving(functools.partial(Hub, files)) as address:
        yield address, files


@pytest.fixture
def push(make, randomise, tmp_path):
    """Pushes a model in a new process, because the client reads its settings when it is imported."""
    levitax.save(tmp_path / "model.safetensors", *randomise(*make()), preprocessing=PREPROCESSING)

    def push(address: str, token: str, *arguments: str) -> str:
        code = (
            "import sys, time, levitax\n"
            "time.sleep = lambda seconds: None\n"
            "weights, token, accuracy = sys.argv[1:]\n"
            "try:\n"
            "    print(levitax.push('you/flowers', *levitax.load(weights), levitax.load_preprocessing(weights),\n"
            "        accuracy=float(accuracy), data='flowers\\n of a garden', token=token))\n"
            "except (OSError, ValueError) as error:\n"
            "    print(type(error).__name__, error)\n"
        )
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        line = [sys.executable, "-c", code, str(tmp_path / "model.safetensors"), token, *arguments]
        result = subprocess.run(line, env=os.environ | settings, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return push


def test_a_model_and_its_card_arrive(hub, push, tmp_path):
    address, files = hub
    assert push(address, "right", "0.934") == f"{address}/you/flowers"
    assert files.keys() == {"model.safetensors", "README.md"}
    (tmp_path / "arrived.safetensors").write_bytes(files["model.safetensors"])
    arrived = levitax.load(tmp_path / "arrived.safetensors")
    assert tree_equal(arrived, levitax.load(tmp_path / "model.safetensors"))
    assert levitax.load_preprocessing(tmp_path / "arrived.safetensors") == PREPROCESSING
    card = files["README.md"].decode()
    total = levitax.summary(*arrived).total
    for line in (
        "license: apache-2.0",
        "library_name: levitax",
        "# flowers",
        f"| parameters | {total.parameters:,} |",
        f"| multiply-adds | {total.multiply_adds:,} for an image |",
        r"| classes | 5: ant, bee, c\|t, dog, elk |",
        "| data | flowers of a garden |",
        "| top-1 accuracy | 93.40% |",
        'classifier = levitax.Classifier.load("you/flowers")',
    ):
        assert f"\n{line}\n" in card


def test_an_upload_that_the_hub_refuses(hub, push, make):
    address, files = hub
    answer = push(address, "wrong", "0.934")
    assert answer.startswith("PermissionError The hub does not let you write to 'you/flowers' (status 401). Log in")
    answer = push("http://127.0.0.1:9", "right", "0.934")
    assert answer.startswith("ConnectionError The hub is out of reach, so nothing was uploaded to 'you/flowers'")
    model, state = make()
    with pytest.raises(TypeError, match="`classes` is 'abc'; expected a sequence of strings"):
        levitax.push("you/flowers", model, state, PREPROCESSING, "abc")
    assert push(address, "right", "93.4").startswith("ValueError `accuracy` is 93.4; expected a number from 0 to 1")
    assert files == {}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("repo_id", ("flowers", "you/flowers/1", "https://huggingface.co/you/flowers", "", None))
def test_a_name_that_is_none(repo_id, make):
    with pytest.raises(ValueError, match=r"`repo_id` is .*; expected an owner and a name, such as 'you/flowers'"):
        model, state = make()
        levitax.push(repo_id, model, state, PREPROCESSING)


def test_classes_replace_those_of_the_preprocessing(make):
    model, state = make()
    with pytest.raises(ValueError, match="`class_names` 3 and the model 5"):
        levitax.push("you/flowers", model, state, PREPROCESSING, ("a", "b", "c"))
