import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.methods.base import Problem
from hypernoise.methods.prompt_search import EndpointRewriter, PromptSearch, parse_lines
from hypernoise.methods.search import Plain
from hypernoise.rewards.pixel import redness

PROMPTS = ["a red circle", "two blue rings", "a cross"]


@pytest.fixture
def noise(generator):
    return torch.randn(3, *generator.noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rewrite(prompt, number):
    """The cross has none; one of the circle's is too long for the text encoder."""
    wordings = {
        "a red circle": ["red " * 40, "a circle", "a red ring"],
        "two blue rings": ["two rings", "two blue rings"],
    }
    return wordings.get(prompt, [])[:number]


def test_each_prompt_keeps_its_best_wording(generator, noise):
    problem, seen = Problem(generator, redness), []

    def reward(pixels, prompts):
        seen.extend(prompts)
        return redness(pixels, prompts)

    result = PromptSearch(rewrite, 4).generate(Problem(generator, reward), PROMPTS, noise)
    assert Counter(seen) == {"a red circle": 3, "two blue rings": 2, "a cross": 1}
    assert (result.spent.denoiser_forwards, result.spent.reward_calls, result.spent.decodes) == (6, 6, 6)
    candidates = [["a red circle", "a circle", "a red ring"], ["two blue rings", "two rings"], ["a cross"]]
    for i, texts in enumerate(candidates):
        drawn = generator.sample(noise[i].expand(len(texts), -1, -1, -1), generator.encode(texts))
        scores = redness(drawn, texts)
        assert result.prompts[i] == texts[int(scores.argmax())]
        assert torch.allclose(result.pixels[i], drawn[int(scores.argmax())].to(result.pixels.dtype), atol=1e-10)
    assert torch.equal(result.noise, noise)
    alone = PromptSearch(rewrite, 1).generate(problem, PROMPTS, noise)
    assert torch.equal(alone.pixels, Plain().generate(problem, PROMPTS, noise).pixels)


def test_lines_are_freed_of_marks():
    answer = '1. A red ring.\n\n2) "two rings"\n- a cross\n* “a square”\n3 circles\n'
    assert parse_lines(answer, 9) == ["A red ring.", "two rings", "a cross", "a square", "3 circles"]
    assert parse_lines(answer, 2) == ["A red ring.", "two rings"]


@pytest.fixture
def server():
    """An OpenAI-compatible endpoint on this machine; `answers` is what it says, `asked` what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            status, text = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    asked, answers = [], []
    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}/v1/", asked, answers
    listening.shutdown()
    listening.server_close()


def test_an_endpoint_is_asked_and_read(server, monkeypatch):
    url, asked, answers = server
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    said = {"choices": [{"message": {"content": "1. a scarlet circle\n2. one red disc"}}]}
    parts = {"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}
    answers += [(200, json.dumps(said)), (500, ""), (200, "{}"), (200, "no"), (200, json.dumps(parts))]
    ask = EndpointRewriter(url, "tiny")
    assert ask("a red circle", 2) == ["a scarlet circle", "one red disc"]
    ((path, key, body),) = asked
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer k", "tiny", 0)
    assert "a red circle" in body["messages"][0]["content"]
    assert "2 different ways" in body["messages"][0]["content"]
    with pytest.raises(InputError, match="does not answer: HTTP Error 500"):
        ask("a", 1)
    for _ in range(3):
        with pytest.raises(InputError, match="does not return a /chat/completions response"):
            ask("a", 1)
    with pytest.raises(InputError, match="starts with http"):
        EndpointRewriter("file:///etc/passwd", "m")
    with pytest.raises(InputError, match="does not answer: nonnumeric port"):
        EndpointRewriter("http://localhost:port/v1", "m")("a", 1)
    with pytest.raises(InputError, match="name the endpoint's model with --rewriter-model"):
        EndpointRewriter(url, "")


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="n must be at least 1"):
        PromptSearch(rewrite, 0)
