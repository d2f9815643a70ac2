"""Uploads to the Hub: an adapter's three files, its card, and a picture. No test connects to it."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from PIL import Image
from safetensors.torch import load_file, save_file

import hypernoise as hn
from hypernoise import model_card as own
from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.evaluation.result_rows import empty_row
from hypernoise.generators.module import ModuleGenerator
from hypernoise.noise.residual import ResidualNoise
from hypernoise.training.config import Recipe

SCENES = Path(str(files("hypernoise").joinpath("scenes/weights/adapter")))
RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def adapter(tmp_path):
    """An adapter as if trained on SD-Turbo."""
    folder = tmp_path / "adapter"
    shutil.copytree(SCENES, folder)
    about = json.loads((folder / "hypernoise.json").read_text())
    about["base"]["name"] = "sd-turbo"
    (folder / "hypernoise.json").write_text(json.dumps(about))
    (folder / "optimizer.pt").write_text("not to be uploaded")
    return folder


@pytest.fixture
def measured(tmp_path):
    """An output of `hypernoise evaluate`."""
    folder = tmp_path / "evaluated"
    folder.mkdir()
    plain = {**empty_row("plain"), "inference_steps": 1, "score": 0.51, "reward": 1.25, "categories": {"colors": 0.4}}
    better = {**plain, "method": "hypernoise", "score": 0.551, "gain": 0.041, "gain_ci95": [0.014, 0.067], "kl": 0.15}
    summary = {"command": "evaluate", "version": "9.9", "arguments": {"prompts": "scenes"}, "results": [plain, better]}
    (folder / "summary.json").write_text(json.dumps(summary))
    Image.new("RGB", (4, 4), RED).save(folder / "before_after.png")
    return folder


class FakeHub:
    """Records the calls of `HfApi` and the uploaded files."""

    def __init__(self, error=None, card=None):
        self.error, self.card, self.asked, self.files = error, card, [], {}

    def __call__(self):
        return self

    def model_info(self, repository):
        self.asked.append(("info", repository))
        return SimpleNamespace(card_data=self.card)

    def create_repo(self, repository, *, exist_ok):
        assert exist_ok
        if self.error:
            raise self.error
        self.asked.append(("create", repository))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.asked.append(("upload", repo_id))
        self.files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}


@pytest.fixture
def hub(monkeypatch):
    hub = FakeHub(card=SimpleNamespace(license="other"))
    monkeypatch.setattr(own, "HfApi", hub)
    monkeypatch.setattr(own, "get_token", lambda: "a token")
    monkeypatch.setattr(ModelCard, "validate", lambda card: hub.asked.append(("validate", card.data.license)))
    return hub


def test_three_files_a_card_and_a_picture_are_uploaded(adapter, measured, hub):
    address = hn.push_to_hub(adapter, "somebody/better-noise", measured=measured)
    assert address == "https://huggingface.co/somebody/better-noise"
    assert hub.asked == [
        ("info", "stabilityai/sd-turbo"),
        ("validate", "other"),
        ("create", "somebody/better-noise"),
        ("upload", "somebody/better-noise"),
    ]
    written = {"adapter_model.safetensors", "adapter_config.json", "hypernoise.json"}
    assert set(hub.files) == {*written, "README.md", "before_after.png"}
    assert all(hub.files[name] == (adapter / name).read_bytes() for name in written)
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.license == "other"
    assert card.data.base_model == "stabilityai/sd-turbo"


def test_the_packaged_adapter_goes_by_its_name_and_a_foreign_one_is_one_line(adapter, hub):
    hn.push_to_hub("scenes", "somebody/scenes")
    assert hub.files["hypernoise.json"] == (SCENES / "hypernoise.json").read_bytes()
    (adapter / "hypernoise.json").unlink()  # and no note in its weights, as the paper's authors' adapters
    save_file(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"has no hypernoise\.json: load it on its base and save it"):
        hn.push_to_hub(adapter, "somebody/theirs")


def test_the_card_says_what_was_measured(adapter, measured):
    card = own.model_card(adapter, "somebody/better-noise", measured=measured)
    again = ModelCard(str(card))  # the Hub's own reading of its metadata
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.model_name == "better-noise"
    text = card.text
    assert "| hypernoise, 1 step | 0.551 | +0.041 | [+0.014, +0.067] | 1.250 | 0.15 |" in text
    assert "| plain, 1 step | 0.510 |  |  | 1.250 |  |" in text
    assert "## By category" in text
    assert "`hypernoise evaluate`, version 9.9" in text
    assert "| rewards | 1 × scenes |" in text
    assert f"| updates | {json.loads((SCENES / 'hypernoise.json').read_text())['training']['steps']} |" in text
    assert "![The same prompts and noises, plain and improved](before_after.png)" in text
    assert "Nothing was measured" not in text
    assert not [line for line in text.splitlines() if line.startswith("|") and not line.endswith("|")]


def test_its_two_lines_name_the_base_and_the_adapter(adapter, tmp_path):
    code = own.model_card(adapter, "somebody/noise").text
    assert 'hn.attach(DiffusionPipeline.from_pretrained("stabilityai/sd-turbo"), "somebody/noise")' in code
    card = own.model_card(SCENES, "somebody/noise")
    assert "base_model" not in card.data.to_dict()
    assert card.data.license == "apache-2.0"
    assert "Nothing was measured" in card.text
    assert "before_after.png" not in card.text
    lines = card.text.partition("```python\n")[2].partition("```")[0]
    exec(lines.replace('"somebody/noise"', '"scenes"'), space := {})
    assert type(space["pipe"]).__name__ == "StableDiffusionPipeline"
    generator = ModuleGenerator(torch.nn.Identity(), noise_shape=(3, 4, 4), name="own")
    save_adapter(ResidualNoise((3, 4, 4)), tmp_path / "residual", generator=generator)
    card = own.model_card(tmp_path / "residual", "somebody/noise")
    assert 'hn.load_adapter(generator, "somebody/noise")' in card.text
    assert card.data.tags == ["noise-hypernetwork", "residual-noise-network"]


def test_of_a_training_run_the_last_samples_are_shown(adapter, hub, tmp_path):
    (tmp_path / "samples").mkdir()
    for step, color in ((10, RED), (200, BLUE)):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"samples/step-{step:06d}.png")
    row = {"method": "hypernoise", "inference_steps": 1, "reward": 2.5, "kl": 0.1, "validation_reward": None}
    (tmp_path / "summary.json").write_text(json.dumps({"command": "train", "version": "9.9", "results": [row]}))
    hn.push_to_hub(adapter, "somebody/noise", measured=tmp_path)
    (tmp_path / "kept.png").write_bytes(hub.files["before_after.png"])
    assert Image.open(tmp_path / "kept.png").getpixel((0, 0)) == BLUE
    assert "| hypernoise, 1 step | 2.500 | 0.10 |" in hub.files["README.md"].decode()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (HfHubHTTPError("403 Forbidden\nlong", response=SimpleNamespace(headers={}, request=None)), "403 Forbidden"),
        (ConnectionError("no route to the Hub"), "no route"),
        (OfflineModeIsEnabled("HF_HUB_OFFLINE"), "HF_HUB_OFFLINE"),
    ],
)
def test_a_hub_that_refuses_is_one_line_and_the_adapter_is_kept(adapter, hub, error, said):
    hub.error = error
    with pytest.raises(hn.InputError, match=said) as refused:
        hn.push_to_hub(adapter, "somebody/noise")
    assert "\n" not in str(refused.value)
    assert str(adapter) in str(refused.value)
    assert hub.files == {}


def test_a_card_that_the_hub_finds_wrong_is_not_uploaded(adapter, hub, monkeypatch):
    def refuse(card):
        raise ValueError("- Error: license is not known")

    monkeypatch.setattr(ModelCard, "validate", refuse)
    with pytest.raises(hn.InputError, match="license is not known"):
        hn.push_to_hub(adapter, "somebody/noise")
    assert hub.files == {}


def test_wrong_input_is_refused_before_any_request_to_the_hub(adapter, hub, tmp_path, monkeypatch):
    for name in ("noise", "a/b/c", "a/b@main", ""):
        with pytest.raises(hn.InputError, match="is owner/name, not"):
            hn.push_to_hub(adapter, name)
    with pytest.raises(hn.InputError, match="holds no results"):
        hn.push_to_hub(adapter, "somebody/noise", measured=tmp_path)
    with pytest.raises(hn.InputError, match="has no adapter_model"):
        hn.push_to_hub(tmp_path, "somebody/noise")
    monkeypatch.setattr(own, "get_token", lambda: None)
    with pytest.raises(hn.InputError, match="hf auth login"):
        hn.push_to_hub(adapter, "somebody/noise")
    assert hub.asked == []


def test_training_pushes_only_on_request(hub, monkeypatch, tmp_path):
    call = ["train", "--max-train-steps", "1", "--train-batch-size", "1", "--lora.rank", "1", "--device", "cpu"]
    call += ["--prompts", str(tmp_path / "prompts.txt"), "--hub-model-id", "somebody/noise"]
    (tmp_path / "prompts.txt").write_text("a ring\n")
    assert main([*call, "--output-dir", str(tmp_path / "silent")]) == 0
    assert hub.asked == []
    assert main([*call, "--output-dir", str(tmp_path / "pushed"), "--push-to-hub"]) == 0
    assert [word for word, _ in hub.asked] == ["validate", "create", "upload"]
    assert b"| updates | 1 |" in hub.files["README.md"]
    monkeypatch.setattr(own, "get_token", lambda: None)
    assert main([*call, "--output-dir", str(tmp_path / "refused"), "--push-to-hub"]) == 2
    assert not (tmp_path / "refused").exists()
    assert not Recipe().push_to_hub
