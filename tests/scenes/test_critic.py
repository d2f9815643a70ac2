"""The generator's adversary: its gradient is right, it learns what is true, and its loss teaches nobody else."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from hypernoise.scenes import critic
from hypernoise.scenes.critic import Critic, adversarial


def made(batch=6):
    torch.manual_seed(0)
    model = Critic(8).double()
    return (
        model,
        *(torch.randn(batch, 16, 8, 8, dtype=torch.float64) for _ in range(2)),
        torch.randn(batch, 5, 8, dtype=torch.float64),
    )


def test_the_generators_gradient_is_that_of_looking_true(monkeypatch):
    monkeypatch.setattr(critic, "BLUR", 0.0)
    model, answer, true, states = made()
    answer.requires_grad_()
    own = torch.randn_like(answer)
    added, _ = adversarial(model, answer, true, states, own, 0.25)
    (gradient,) = torch.autograd.grad(added, answer)

    def looks_false(moved):
        return softplus(model(true, states) - model(moved, states)).mean()

    (slope,) = torch.autograd.grad(looks_false(answer), answer)
    direction = torch.randn_like(answer)
    with torch.no_grad():
        measured = (looks_false(answer + 1e-5 * direction) - looks_false(answer - 1e-5 * direction)) / 2e-5
    assert measured.abs() > 1e-6
    torch.testing.assert_close((slope * direction).sum(), measured, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(gradient, slope * 0.25 * own.norm() / slope.norm())


def test_the_critics_loss_reaches_neither_the_generator_nor_the_caption():
    model, answer, true, states = made()
    answer.requires_grad_(), states.requires_grad_()
    _, loss = adversarial(model, answer, true, states, torch.ones_like(answer), 1.0)
    loss.backward()
    assert answer.grad is None
    assert states.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


def test_what_is_added_teaches_the_critic_its_own_loss_alone():
    found = []
    for strength in (0.0, 5.0):
        model, answer, true, states = made()
        torch.manual_seed(1)
        added, _ = adversarial(model, answer.requires_grad_(), true, states, torch.ones_like(answer), strength)
        found.append(torch.autograd.grad(added, list(model.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_it_learns_to_tell_true_from_false_and_a_caption_from_another():
    torch.manual_seed(0)
    model = Critic(8).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    captions = torch.randn(2, 5, 8)
    pictures = torch.randn(2, 16, 8, 8)

    def batch(swapped):
        which = torch.arange(16) % 2
        return pictures[which], pictures[1 - which] if swapped else 0.3 * pictures[which], captions[which]

    for step in range(60):
        true, false, states = batch(swapped=step % 2 == 0)
        optimizer.zero_grad()
        adversarial(model, false, true, states, false, 0.0)[1].backward()
        optimizer.step()
    with torch.no_grad():
        for swapped in (True, False):
            true, false, states = batch(swapped)
            assert (model(true, states).mean((1, 2, 3)) > model(false, states).mean((1, 2, 3)) + 1).all()
