"""A reward behind a local server: what it is sent, what is refused, and that it validates a training."""

import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.rewards.ensemble import WeightedSum, load_reward
from hypernoise.training.config import Recipe
from hypernoise.training.metrics import rows_of


@pytest.fixture
def server():
    """Scores a picture by its mean red; `asked` has the requests, `answer` replaces the answer's text."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append(request)
            pictures = [Image.open(io.BytesIO(base64.b64decode(image))) for image in request["images"]]
            scores = [float(np.asarray(picture)[..., 0].mean()) / 255 for picture in pictures]
            body = (self.server.answer or json.dumps({"scores": scores})).encode()
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.answer, server.status = [], None, 200
        server.address = f"http://127.0.0.1:{server.server_port}/score"
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_server_sees_the_pictures_and_its_scores_come_back(server):
    reward = load_reward(server.address)
    assert server.asked == [{"prompts": [], "images": []}]
    pixels = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    scores = reward(pixels, ["a", "b", "c"])
    assert torch.allclose(scores, pixels[:, 0].mean((1, 2)), atol=1 / 255)
    assert server.asked[1]["prompts"] == ["a", "b", "c"]
    total = WeightedSum({server.address: 2.0})(pixels, ["a", "b", "c"])
    assert torch.allclose(total, 2 * scores)


def test_it_is_no_reward_to_train_on(server):
    with pytest.raises(InputError, match="gives no gradient: name it in validation_reward"):
        Recipe(rewards={server.address: 1.0})
    with pytest.raises(InputError, match="gives no gradient: name it in validation_reward"):
        load_reward(server.address)(torch.rand(1, 3, 4, 4, requires_grad=True), ["a"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("no JSON", 'does not answer with {"scores": '),
        ('{"score": 1}', 'does not answer with {"scores": '),
        ('{"scores": [1, 2]}', r"answers with \[1, 2\] for 1 pictures"),
        ('{"scores": ["high"]}', r"answers with \['high'\] for 1 pictures"),
        ('{"scores": 1}', "answers with 1 for 1 pictures"),
    ],
)
def test_an_invalid_answer_is_one_line(server, answer, message):
    reward = load_reward(server.address)
    server.answer = answer
    with pytest.raises(InputError, match=message) as refused:
        reward(torch.rand(1, 3, 4, 4), ["a"])
    assert "\n" not in str(refused.value)


def test_an_endpoint_that_is_down_is_one_line(server, tmp_path, capsys):
    server.status = 500
    with pytest.raises(InputError, match="does not answer: HTTP Error 500"):
        load_reward(server.address)
    call = ["train", "--validation-reward", "http://127.0.0.1:9/score", "--output-dir", str(tmp_path / "run")]
    assert main([*call, "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("hypernoise: reward 'http://127.0.0.1:9/score' does not answer: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_it_validates_a_training(server, tmp_path):
    (tmp_path / "prompts.txt").write_text("a ring\n")
    call = ["train", "--max-train-steps", "2", "--train-batch-size", "2", "--lora.rank", "1", "--device", "cpu"]
    call += ["--prompts", str(tmp_path / "prompts.txt"), "--validation-steps", "1"]
    assert main([*call, "--validation-reward", server.address, "--output-dir", str(tmp_path / "run")]) == 0
    assert [len(request["images"]) for request in server.asked] == [0, 2, 2]
    assert all(0 < row["validation_reward"] < 1 for row in rows_of(tmp_path / "run"))
