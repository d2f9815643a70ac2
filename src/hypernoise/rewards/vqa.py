"""VQAScore (Lin et al. 2024, arXiv 2404.01291): how sure a vision-language model is that a picture shows a prompt.

    score = log P("Yes" | picture, "Does this figure show "PROMPT"? Please answer yes or no.")      in nats

The paper reports P itself; its logarithm keeps a gradient where the model is sure that the answer is no. The
model reads prompts of thousands of tokens, so that nothing is cut. LLaVA's class in transformers covers the
paper's LLaVA-1.5 and a small Qwen-based one; pictures are resized as their processors do.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from hypernoise.errors import InputError, first_line
from hypernoise.generators.text_cache import Remembered
from hypernoise.quiet import no_loading_bars
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.network import NetworkReward, prepared, wide
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, HALF, Resize, normalise
from hypernoise.rewards.text import load_tokenizer

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'  # the paper's, section 3


@dataclass(frozen=True)
class Vlm:
    """A LLaVA on the Hub: how a question is put to it, and what it is shown.

    chat: the whole text, with <image> where the picture goes and {question}: the model card's of LLaVA-1.5, and
        ChatML for the one on Qwen.
    """

    repository: str
    chat: str
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    answer: str = "Yes"


VLMS = {
    "vqascore": Vlm("llava-hf/llava-1.5-7b-hf", "USER: <image>\n{question} ASSISTANT:", "crop", CLIP_MEAN, CLIP_STD),
    "vqascore-small": Vlm(
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        "<|im_start|>user <image>\n{question}<|im_end|><|im_start|>assistant\n",
        "squash",
        HALF,
        HALF,
    ),
}


def load(name: str, settings: RewardSettings) -> VqaReward:
    """The reward of a row of `VLMS`, from the local Hub cache or downloaded, in the settings' precision.

    Raises:
        InputError: weights that cannot be loaded or do not fit.
    """
    row = VLMS[name]
    try:
        with no_loading_bars():
            loaded: Any = LlavaForConditionalGeneration.from_pretrained(
                row.repository,
                dtype=getattr(torch, settings.dtype),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # the refusal below names them
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"reward {name!r}: {row.repository} cannot be loaded: {first_line(error)} "
            f"(put it in the local Hub cache with: hf download {row.repository})"
        ) from error
    model, report = loaded
    constants = ("position_ids", "inv_freq")  # which older versions saved
    wrong = sorted(name for kind in ("missing_keys", "unexpected_keys") for name in report[kind])
    wrong = [name for name in wrong if not name.endswith(constants)]
    for misshapen in report["mismatched_keys"]:  # (name, given, wanted), or the name alone in transformers 4
        wrong.append(misshapen if isinstance(misshapen, str) else "{} {} for {}".format(*map(_plain, misshapen)))
    if wrong:
        raise InputError(f"reward {name!r}: {row.repository} does not fit the model: {', '.join(wrong[:5])}")
    return VqaReward(name, model, load_tokenizer(row.repository), row, settings)


def _plain(part: Any) -> Any:
    return part if isinstance(part, str) else list(part)


class VqaReward(NetworkReward):
    """log P(answer | picture, question) in nats of a `LlavaForConditionalGeneration`, at most 0."""

    def __init__(
        self,
        name: str,
        model: LlavaForConditionalGeneration,
        tokenizer: Any,
        row: Vlm,
        settings: RewardSettings | None = None,
    ):
        self.name, self.row, self.settings = name, row, settings or RewardSettings()
        config: Any = model.config
        seen: Any = config.vision_config
        self.resize = Resize(seen.image_size, row.fit)  # type: ignore[arg-type]
        with_class = config.vision_feature_select_strategy == "full" and seen.model_type == "clip_vision_model"
        self.places = (seen.image_size // seen.patch_size) ** 2 + with_class  # of the picture among the tokens
        self.picture_token: int = getattr(config, "image_token_id", None) or config.image_token_index
        self.network = prepared(model.requires_grad_(False).eval(), self.settings)
        self.tokenizer, self.question = tokenizer, QUESTION
        self.answer = torch.tensor(tokenizer(row.answer, add_special_tokens=False).input_ids)
        self.longest: int = config.text_config.max_position_embeddings
        self.texts = Remembered(self._encode)

    def asking(self, question: str, answer: str) -> VqaReward:
        """The same model asked otherwise: "prompts" fill the {} of `question`, and P(answer) is scored."""
        other = copy.copy(self)
        other.question, other.row = question, replace(self.row, answer=answer)
        other.answer = torch.tensor(self.tokenizer(answer, add_special_tokens=False).input_ids)
        other.texts = Remembered(other._encode)
        return other

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        texts = self.texts(prompts)
        longest = max(len(ids) for ids in texts)
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):  # padded in front, where positions are relative: all answers end together
            ids[row, longest - len(text) :], mask[row, longest - len(text) :] = text, 1
        ids, mask, answer = ids.to(self.device), mask.to(self.device), self.answer.to(self.device)
        network: Any = self.network
        logits = network(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=normalise(resized, self.row.mean, self.row.std).to(self.dtype),
            logits_to_keep=len(answer) + 1,
            use_cache=False,
        ).logits[:, :-1]
        return wide(logits).log_softmax(-1).gather(-1, answer.expand(len(ids), -1)[..., None]).sum((1, 2))

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        """Token ids of each question with its answer, the picture's place filled with as many tokens as it has."""
        encoded = []
        for prompt in prompts:
            ids = self.tokenizer(self.row.chat.replace("{question}", self.question.format(prompt))).input_ids
            place = ids.index(self.picture_token)
            picture = [self.picture_token] * self.places
            ids = [*ids[:place], *picture, *ids[place + 1 :], *self.answer.tolist()]
            if len(ids) > self.longest:
                raise InputError(f"reward {self.name!r} reads {self.longest} tokens and a prompt makes {len(ids)}")
            encoded.append(torch.tensor(ids))
        return encoded
