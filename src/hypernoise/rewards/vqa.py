"""VQAScore (Lin et al. 2024, arXiv 2404.01291): a vision-language model's confidence that a picture shows a prompt.

    score = log P("Yes" | picture, "Does this figure show "PROMPT"? Please answer yes or no.")      in nats

The paper reports P itself; its logarithm keeps a gradient where the model is sure of a no. The
model reads prompts of thousands of tokens, so nothing is truncated. LLaVA's class in transformers covers the
paper's LLaVA-1.5 and a small Qwen-based one; pictures are resized as their processors do. Qwen2.5-VL and Qwen3-VL
answer the same question (`qwen`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hypernoise.errors import InputError
from hypernoise.generators.text_cache import Remembered
from hypernoise.objective import wide
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.network import NetworkReward
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, HALF, Resize
from hypernoise.rewards.text import load_tokenizer
from hypernoise.rewards.weights import pretrained

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'  # the paper's


@dataclass(frozen=True)
class Vlm:
    """A vision-language model on the Hub: its prompt format and its picture input.

    chat: the whole text, with <image> or <|image_pad|> for the picture and {question}: from LLaVA-1.5's model card,
        and ChatML for those on Qwen.
    fit: for LLaVA's square pictures.
    model, reward: their classes.
    """

    repository: str
    chat: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = ""
    answer: str = "Yes"
    model: str = "LlavaForConditionalGeneration"
    reward: str = "vqa.VqaReward"


CHATML = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
HELPFUL = f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{CHATML}"  # Qwen2-VL's and Qwen2.5-VL's
LLAVA = "USER: <image>\n{question} ASSISTANT:"
LLAVA_QWEN = "<|im_start|>user <image>\n{question}<|im_end|><|im_start|>assistant\n"
QWEN = "qwen.QwenReward"
VLMS = {
    "vqascore": Vlm("llava-hf/llava-1.5-7b-hf", LLAVA, CLIP_MEAN, CLIP_STD, fit="crop"),
    "vqascore-small": Vlm("llava-hf/llava-interleave-qwen-0.5b-hf", LLAVA_QWEN, HALF, HALF, fit="squash"),
    "vqascore-qwen2.5-vl": Vlm(
        *("Qwen/Qwen2.5-VL-3B-Instruct", HELPFUL, CLIP_MEAN, CLIP_STD),
        model="Qwen2_5_VLForConditionalGeneration",
        reward=QWEN,
    ),
    "vqascore-qwen3-vl": Vlm(
        *("Qwen/Qwen3-VL-4B-Instruct", CHATML, HALF, HALF), model="Qwen3VLForConditionalGeneration", reward=QWEN
    ),
}


def load(name: str, settings: RewardSettings) -> VqaReward:
    """The reward of a row of `VLMS`, from the local Hub cache or downloaded, in the settings' precision.

    Raises:
        InputError: weights that cannot be loaded or do not fit.
    """
    row = VLMS[name]
    where = f"reward {name!r}: {row.repository}"
    dtype = getattr(torch, settings.dtype)
    model = pretrained(getattr(transformers, row.model), row.repository, where, dtype=dtype, strict=True)
    module, _, cls = row.reward.partition(".")
    reward = getattr(import_module(f"hypernoise.rewards.{module}"), cls)
    return reward(name, model, load_tokenizer(row.repository), row, settings)


class VqaReward(NetworkReward):
    """log P(answer | picture, question) in nats of a `LlavaForConditionalGeneration`, at most 0."""

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        row: Vlm,
        settings: RewardSettings | None = None,
    ):
        config: Any = model.config
        super().__init__(name, model, self.resize_of(config, row), settings)
        self.picture_token: int = getattr(config, "image_token_id", None) or config.image_token_index
        self.row, self.tokenizer, self.question = row, tokenizer, QUESTION
        self.answer = torch.tensor(tokenizer(row.answer, add_special_tokens=False).input_ids)
        self.longest: int = config.text_config.max_position_embeddings

    def resize_of(self, config: Any, row: Vlm) -> Resize:
        return Resize(config.vision_config.image_size, row.fit)  # type: ignore[arg-type]

    def places(self, resized: Tensor) -> int:
        """The picture's place among the tokens."""
        seen = self.network.config.vision_config
        with_class = (
            self.network.config.vision_feature_select_strategy == "full" and seen.model_type == "clip_vision_model"
        )
        return (seen.image_size // seen.patch_size) ** 2 + with_class

    def shown(self, resized: Tensor, ids: Tensor) -> dict[str, Any]:
        """The model's inputs for the pictures of texts with these token ids."""
        return {"pixel_values": self.normalised(resized, self.row.mean, self.row.std)}

    def asking(self, question: str, answer: str) -> VqaReward:
        """The same model with another question: "prompts" fill the {} of `question`, and P(answer) is scored."""
        other = copy.copy(self)
        other.question, other.row = question, replace(self.row, answer=answer)
        other.answer = torch.tensor(self.tokenizer(answer, add_special_tokens=False).input_ids)
        other.texts = Remembered(other._encode)
        return other

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        places = self.places(resized)
        texts = [with_places(text, self.picture_token, places) for text in self.texts(prompts)]
        for text in texts:
            if len(text) > self.longest:
                raise InputError(f"reward {self.name!r} reads {self.longest} tokens, but a prompt has {len(text)}")
        ids, mask = padded(texts, "left", self.device)  # as positions are relative: all answers end together
        answer = self.answer.to(self.device)
        logits = self.network(
            input_ids=ids,
            attention_mask=mask,
            **self.shown(resized, ids),
            logits_to_keep=len(answer) + 1,
            use_cache=False,
        ).logits[:, :-1]
        return wide(logits).log_softmax(-1).gather(-1, answer.expand(len(ids), -1)[..., None]).sum((1, 2))

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Token ids of each question with its answer, with one token for the picture."""
        asked = [self.row.chat.replace("{question}", self.question.format(prompt)) for prompt in prompts]
        return [torch.tensor([*self.tokenizer(text).input_ids, *self.answer.tolist()]) for text in asked]


def with_places(ids: Tensor, picture_token: int, places: int) -> Tensor:
    """Token ids [L] with the picture's one token repeated as often as needed."""
    place = int((ids == picture_token).nonzero()[0, 0])
    return torch.cat([ids[:place], ids.new_full((places,), picture_token), ids[place + 1 :]])


def padded(texts: list[Tensor], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, longest] of texts [L]."""
    both = (texts, [torch.ones_like(text) for text in texts])
    ids, mask = (pad_sequence(rows, batch_first=True, padding_side=side).to(device) for rows in both)
    return ids, mask
