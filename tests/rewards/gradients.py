"""The gradient of a reward, compared with a central difference."""

import pytest
import torch


def assert_gradient_is_right(reward, pixels, prompts, *, least=1e-4, step=1e-4, rel=1e-4):
    """Every picture's gradient has a norm above `least`, and matches the reward's rise along it."""
    pixels = pixels.double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(pixels, prompts).sum(), pixels)
    assert gradient.flatten(1).norm(dim=1).min() > least
    along = gradient / gradient.norm()
    with torch.no_grad():
        rise = reward(pixels + step * along, prompts).sum() - reward(pixels - step * along, prompts).sum()
    assert rise.item() / (2 * step) == pytest.approx(gradient.norm().item(), rel=rel)
