"""The two networks of `experiments.eyes`, with third-party weights: a GAN of painted eyes and a classifier.

The wheels' own code is not imported (it needs torchvision and loads its networks at import): only their weight files
are read, into the same architectures defined here.
"""

from __future__ import annotations

import pickle
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from hypernoise.errors import InputError

COLOURS = ("amber", "blue", "brown", "gray", "grayscale", "green", "hazel", "red")  # the generator's classes
CLASSES = ("amber", "blue", "brown", "gray", "grayscale", "green", "hazel", "irisless", "negative", "red")
SIZE = 100  # of the noise
WHEELS = {  # package: version, weight file
    "omniart-eye-generator": ("0.1", "omniart_eye_generator/generator_model_state.pth"),
    "omniart-eye-classifier": ("0.1.3", "omniart_eye_classifier/classifier_model_state.pth"),
}
INSTALL = "pip install " + " ".join(f"{name}=={version}" for name, (version, _) in WHEELS.items())


class EyeGenerator(nn.Module):
    """Noise [B, 100] and one-hot colours [B, 8] to pictures [B, 3, 128, 128] in [-1, 1] (a conditional DCGAN).

    `width` 64 is the wheel's.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        widths = [SIZE + len(COLOURS), *(width * factor for factor in (16, 8, 4, 2, 1))]
        layers: list[nn.Module] = []
        for i in range(5):
            step, pad = (2, 1) if i else (1, 0)
            up = nn.ConvTranspose2d(widths[i], widths[i + 1], 4, step, pad, bias=False)
            layers += [up, nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
            layers += [] if i else [nn.Dropout(0.2)]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, noise: Tensor, colour: Tensor) -> Tensor:
        return self.main(torch.cat([noise, colour.to(noise)], 1)[..., None, None])


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    def __init__(self, before: int, width: int, step: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, step, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        same = step == 1 and before == width
        shortcut = (nn.Conv2d(before, width, 1, step, bias=False), nn.BatchNorm2d(width))
        self.downsample = nn.Identity() if same else nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(inner)) + self.downsample(x)).relu()


class ResNet18(nn.Module):
    """He et al. 2016, with torchvision's layer names and the wheel's head."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        head = (nn.Linear(8 * width, 4 * width), nn.Dropout(0.6), nn.Linear(4 * width, len(CLASSES)))
        self.fc = nn.Sequential(nn.Dropout(0.6), *head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class EyeClassifier(nn.Module):
    """Pixels [B, 3, H, W] in [0, 1] to logits [B, 10] in the order of `CLASSES`; `width` 64 is the wheel's."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.layers = ResNet18(width)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def one_hot_colours(prompts: list[str]) -> Tensor:
    """One-hot [B, 8] of colours by name."""
    return one_hot(torch.tensor([COLOURS.index(prompt) for prompt in prompts]), len(COLOURS)).float()


def weight_file(package: str) -> Path:
    """The path of an installed wheel's weights; InputError, with the install command, if it is missing."""
    _, name = WHEELS[package]
    try:
        found = [file for file in files(package) or [] if str(file) == name]
    except PackageNotFoundError:
        found = []
    place = Path(str(found[0].locate())) if found else None
    if place is None or not place.is_file():
        raise InputError(f"the weights of {package} are not installed: {INSTALL}")
    return place


def filled(network: nn.Module, file: Path) -> nn.Module:
    """The network with a file's weights, strictly, in eval mode and frozen; InputError for a file that does not fit."""
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, AttributeError, TypeError, ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{file} does not hold the weights of {type(network).__name__}: reinstall its wheel"
        ) from error
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # a sixth faster
    return network.eval().requires_grad_(False)
