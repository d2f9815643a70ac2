"""HPSv3 (Ma et al. 2025, arXiv 2508.03789): a Qwen2-VL with a head on the state of one token, <|Reward|>.

The head gives the mean and the spread of a preference; the mean is the score. The wording that the model was trained
with is part of its input and is read from the authors' package, whose code is not run.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, Qwen2VLModel

from hypernoise.errors import InputError, no_traceback
from hypernoise.generators.hub import fetch
from hypernoise.objective import wide
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.vqa import HELPFUL, QwenReward, Vlm
from hypernoise.rewards.weights import filled, load_tokenizer, read_state, renamed

RELEASED = ("MizzenAI/HPSv3", "HPSv3.safetensors")
BACKBONE = "Qwen/Qwen2-VL-7B-Instruct"  # only configuration and tokenizer
DOWNLOAD = f"to download it: hf download {BACKBONE} --include '*.json' --include '*.txt'"
NAMES = {r"^visual\.": "model.visual.", r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1."}
UNUSED = r"lm_head\."
MARK = "<|Reward|>"
WORDING = "dataset/data_collator_qwen.py", ("INSTRUCTION", "prompt_with_special_token")


class Network(nn.Module):
    """The used parts of the released checkpoint: the backbone without its language head, and the reward head."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.model = Qwen2VLModel(config)
        width = config.text_config.hidden_size
        hidden = nn.Linear(width, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU()  # after a dropout
        self.rm_head = nn.Sequential(*hidden, nn.Linear(16, 2))


def load(name: str, settings: RewardSettings) -> HpsV3:
    """The reward. Raises InputError without the authors' wording, or if weights cannot be loaded or do not fit."""
    text = wording()
    with no_traceback(f"reward {name!r}: the configuration of {BACKBONE} cannot be loaded ({DOWNLOAD})"):
        config = AutoConfig.from_pretrained(BACKBONE, trust_remote_code=False)
    state = renamed(read_state(fetch(*RELEASED)), NAMES, UNUSED)
    words = state.get("model.language_model.embed_tokens.weight")
    if words is not None:
        config.text_config.vocab_size = len(words)  # the authors shrink it to the tokenizer's
    return HpsV3(filled(lambda: Network(config), state, f"reward {name!r}"), load_tokenizer(BACKBONE), text, settings)


def wording() -> str:
    """The prompt text from the authors' package, with {text_prompt} for the prompt."""
    package: Any = find_spec("hpsv3")  # finds a package without running it
    file, names = WORDING
    try:
        tree = ast.parse((Path(package.submodule_search_locations[0]) / file).read_text())
        assigned: list[Any] = [node for node in tree.body if isinstance(node, ast.Assign)]
        texts = {node.targets[0].id: ast.literal_eval(node.value) for node in assigned}
        return "".join(texts[name] for name in names)
    except (AttributeError, OSError, SyntaxError, ValueError, KeyError) as error:
        raise InputError(
            "reward 'hpsv3' needs the wording that it was trained with: pip install --no-deps hpsv3==1.0.0 (its "
            "code is not run)"
        ) from error


class HpsV3(QwenReward):
    """The mean of HPSv3's preference, unbounded: higher is better."""

    def __init__(self, network: Network, tokenizer: Any, wording: str, settings: RewardSettings | None = None):
        tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
        super().__init__("hpsv3", network, tokenizer, Vlm(BACKBONE, HELPFUL), settings)
        self._ask(wording.replace("{text_prompt}", "{}"), "")
        self.mark: int = tokenizer.convert_tokens_to_ids(MARK)
        self.network.rm_head.to(torch.float32)  # as in the authors' code

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        inputs = self.inputs(resized, prompts, "right")
        states = self.network.model(**inputs).last_hidden_state
        return self.network.rm_head(wide(states[inputs["input_ids"] == self.mark]))[:, 0]
