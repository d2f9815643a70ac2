"""Models that answer questions about pictures: P(answer) from a LLaVA, and yes against no from BLIP-VQA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering

from hypernoise.errors import InputError
from hypernoise.evaluation.pretrained import pretrained
from hypernoise.evaluation.question import YES, Question
from hypernoise.rewards import vqa
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.preprocess import CLIP_MEAN, CLIP_STD, Resize, normalise
from hypernoise.rewards.text import load_tokenizer
from hypernoise.rewards.vqa import VqaReward

LONGEST = 35  # tokens of a question
BLIP = "Salesforce/blip-vqa-capfilt-large"


class Asker(Protocol):
    """P(right answer) [questions] of one picture [3, H, W] in [0, 1]; `sentence` has a {} for the question."""

    name: str

    def __call__(self, picture: Tensor, questions: Sequence[Question], sentence: str) -> list[float]: ...


def load(name: str, device: torch.device | str) -> Asker:
    """A reward of `rewards.vqa` by name, or the BLIP of a Hub repository or folder ("blip": the default one).

    Raises:
        InputError: weights that are missing or do not fit.
    """
    if name in vqa.VLMS:
        return LlavaAsker(vqa.load(name, RewardSettings()), device)
    source = BLIP if name == "blip" else name
    model = pretrained(BlipForQuestionAnswering, source, "judge", "BLIP", device)
    return BlipAsker(model, load_tokenizer(source), source)


class LlavaAsker:
    """The probability of the right answer among all possible outputs."""

    def __init__(self, reward: VqaReward, device: torch.device | str = "cpu"):
        self.name, self.reward, self.device = reward.name, reward, device
        self.asking: dict[tuple[str, str], VqaReward] = {}

    @torch.no_grad()
    def __call__(self, picture: Tensor, questions: Sequence[Question], sentence: str) -> list[float]:
        found = []
        for question in questions:
            key = (sentence, question.answer.capitalize())  # the capitalisation that the model was trained with
            if key not in self.asking:
                self.asking[key] = self.reward.asking(*key)
            score = self.asking[key](picture[None].to(self.device), [question.text])
            found.append(score.exp().item())
        return found


class BlipAsker:
    """P(yes) / (P(yes) + P(no)) of the answer's first token, like T2I-CompBench's BLIP-VQA (its models/blip_vqa.py).

    As there, pictures are resized to the model's square ignoring their aspect ratio, questions begin with BLIP's token
    [ENC] and are truncated to 35 tokens.
    """

    def __init__(self, model: BlipForQuestionAnswering, tokenizer: Any, name: str):
        config: Any = model.config
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.resize = Resize(config.vision_config.image_size, "squash")
        self.begin = config.text_config.bos_token_id + 1  # [ENC] follows [DEC], the start of answers
        self.yes, self.no = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in (YES, "no"))

    @torch.no_grad()
    def __call__(self, picture: Tensor, questions: Sequence[Question], sentence: str) -> list[float]:
        odd = [question.answer for question in questions if question.answer.lower() != YES]
        if odd:
            raise InputError(f"judge {self.name} only answers yes or no, but a right answer is {odd[0]!r}")
        model, device = self.model, self.model.device
        seen = model.vision_model(normalise(self.resize(picture[None].to(device)), CLIP_MEAN, CLIP_STD))[0]
        found = []
        for question in questions:
            text = sentence.format(question.text)
            given = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=LONGEST).to(device)
            given.input_ids[:, 0] = self.begin
            read = model.text_encoder(
                input_ids=given.input_ids, attention_mask=given.attention_mask, encoder_hidden_states=seen
            )[0]
            start = torch.full((1, 1), model.decoder_start_token_id, device=device)
            answer = model.text_decoder(
                input_ids=start, encoder_hidden_states=read, encoder_attention_mask=given.attention_mask
            )
            both = answer.logits[0, -1, [self.yes, self.no]].float().softmax(0)
            found.append(both[0].item())
        return found
