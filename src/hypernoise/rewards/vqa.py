"""VQAScore (Lin et al. 2024, arXiv 2404.01291): a vision-language model's confidence that a picture shows a prompt.

    score = log P("Yes" | picture, "Does this figure show "PROMPT"? Please answer yes or no.")      in nats

The paper reports P itself; its logarithm keeps a gradient where the model is sure of a no. The
model reads prompts of thousands of tokens, so nothing is truncated. LLaVA's class in transformers covers the
paper's LLaVA-1.5 and a small Qwen-based one; pictures are resized as their processors do. Qwen2.5-VL and Qwen3-VL
answer the same question about pictures of any shape.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from hypernoise.errors import InputError
from hypernoise.generators.text_cache import Remembered
from hypernoise.objective import wide
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.network import CLIP_MEAN, CLIP_STD, HALF, Fit, NetworkReward, Resize, padded, patches
from hypernoise.rewards.weights import load_tokenizer, pretrained

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'  # the paper's


@dataclass(frozen=True)
class Vlm:
    """A vision-language model on the Hub: its prompt format and its picture input.

    chat: the whole text, with <image> or <|image_pad|> for the picture and {question}: from LLaVA-1.5's model card,
        and ChatML for those on Qwen.
    fit: "area" for a Qwen, which keeps a picture's shape.
    model: its class.
    """

    repository: str
    chat: str
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: Fit = "area"
    model: str = "LlavaForConditionalGeneration"


CHATML = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
HELPFUL = f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{CHATML}"  # Qwen2-VL's and Qwen2.5-VL's
LLAVA = "USER: <image>\n{question} ASSISTANT:"
LLAVA_QWEN = "<|im_start|>user <image>\n{question}<|im_end|><|im_start|>assistant\n"
VLMS = {
    "vqascore": Vlm("llava-hf/llava-1.5-7b-hf", LLAVA, CLIP_MEAN, CLIP_STD, "crop"),
    "vqascore-small": Vlm("llava-hf/llava-interleave-qwen-0.5b-hf", LLAVA_QWEN, HALF, HALF, "squash"),
    "vqascore-qwen2.5-vl": Vlm("Qwen/Qwen2.5-VL-3B-Instruct", HELPFUL, model="Qwen2_5_VLForConditionalGeneration"),
    "vqascore-qwen3-vl": Vlm("Qwen/Qwen3-VL-4B-Instruct", CHATML, HALF, HALF, model="Qwen3VLForConditionalGeneration"),
}


def load(name: str, settings: RewardSettings) -> VqaReward:
    """The reward of a row of `VLMS`. Raises InputError for weights that cannot be loaded or do not fit."""
    row, dtype = VLMS[name], getattr(torch, settings.dtype)
    what = f"reward {name!r}: {row.repository}"
    model = pretrained(getattr(transformers, row.model), row.repository, what, dtype=dtype, strict=True)
    reward = QwenReward if row.fit == "area" else VqaReward
    return reward(name, model, load_tokenizer(row.repository), row, settings)


class VqaReward(NetworkReward):
    """log P(answer | picture, question) in nats of a `LlavaForConditionalGeneration`, at most 0."""

    def __init__(self, name: str, model: Any, tokenizer: Any, row: Vlm, settings: RewardSettings | None = None):
        config: Any = model.config
        eye = config.vision_config
        side = eye.patch_size * eye.spatial_merge_size if row.fit == "area" else eye.image_size
        super().__init__(name, model, Resize(side, row.fit), settings)
        self.tokenizer, self.longest = tokenizer, config.text_config.max_position_embeddings
        self.picture_token: int = getattr(config, "image_token_id", None) or config.image_token_index
        self.row = row
        self._ask(QUESTION, "Yes")

    def _ask(self, question: str, answer: str) -> None:
        self.question, ids = question, self.tokenizer(answer, add_special_tokens=False).input_ids
        self.answer, self.texts = torch.tensor(ids), Remembered(self._encode)

    def asking(self, question: str, answer: str) -> VqaReward:
        """The same model with another question: "prompts" fill the {} of `question`, and P(answer) is scored."""
        other = copy.copy(self)
        other._ask(question, answer)
        return other

    def places(self, resized: Tensor) -> int:
        """The picture's places among the tokens."""
        return (self.resize.size // self.network.config.vision_config.patch_size) ** 2

    def shown(self, resized: Tensor, ids: Tensor) -> dict[str, Any]:
        """The model's inputs for the pictures of texts with these token ids."""
        return {"pixel_values": self.normalised(resized, self.row.mean, self.row.std)}

    def inputs(self, resized: Tensor, prompts: list[str], side: str) -> dict[str, Any]:
        """The model's inputs: token ids padded on one side, with the picture's one repeated as often as needed, their
        mask, and the pictures."""
        texts, places = self.texts(prompts), self.places(resized)
        texts = [with_places(text, self.picture_token, places) for text in texts]
        for text in texts:
            if len(text) > self.longest:
                raise InputError(f"reward {self.name!r} reads {self.longest} tokens, but a prompt has {len(text)}")
        ids, mask = padded(texts, side, self.device)
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False, **self.shown(resized, ids)}

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        inputs = self.inputs(resized, prompts, "left")  # as positions are relative: all answers end together
        answer = self.answer.to(self.device).expand(len(prompts), -1)
        logits = self.network(**inputs, logits_to_keep=answer.shape[1] + 1).logits[:, :-1]
        return wide(logits).log_softmax(-1).gather(-1, answer[..., None]).sum((1, 2))

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Token ids of each question with its answer, with one token for the picture."""
        asked = [self.row.chat.replace("{question}", self.question.replace("{}", prompt)) for prompt in prompts]
        return [torch.tensor([*self.tokenizer(text).input_ids, *self.answer.tolist()]) for text in asked]


class QwenReward(VqaReward):
    """log P(answer | picture, question) in nats of a Qwen2.5-VL or Qwen3-VL, at most 0.

    A Qwen keeps a picture's aspect ratio and takes it as a sequence of patches.
    """

    def places(self, resized: Tensor) -> int:
        return (resized.shape[-2] // self.resize.size) * (resized.shape[-1] // self.resize.size)

    def shown(self, resized: Tensor, ids: Tensor) -> dict[str, Any]:
        config = self.network.config
        eye = config.vision_config
        grid = [1, resized.shape[-2] // eye.patch_size, resized.shape[-1] // eye.patch_size]
        pixels = self.normalised(resized, self.row.mean, self.row.std)
        inputs = {
            "pixel_values": patches(pixels, eye.patch_size, eye.spatial_merge_size, eye.temporal_patch_size),
            "image_grid_thw": torch.tensor([grid] * len(resized), device=ids.device),
        }
        if "mm_token_type_ids" in inspect.signature(self.network.model.forward).parameters:
            inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()  # transformers 4 finds them itself
        return inputs


def with_places(ids: Tensor, picture_token: int, places: int) -> Tensor:
    """Token ids [L] with the picture's one token repeated as often as needed."""
    place = int((ids == picture_token).nonzero()[0, 0])
    return torch.cat([ids[:place], ids.new_full((places,), picture_token), ids[place + 1 :]])
