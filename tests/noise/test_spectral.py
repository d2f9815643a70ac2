"""The spectral noise network: its basis, its map, its exact KL, in fp64."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm

from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.coupling import CouplingFlow
from hypernoise.noise.spectral import SpectralNoise, _weighed, cosine_basis, described, unpacked
from tests.conftest import disturb


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def prompts(count, tokens=5, width=6, pooled=0, seed=9):
    tensors = {"prompt_embeds": randn(count, tokens, width, seed=seed, dtype=torch.float32)}
    if pooled:
        tensors["pooled_prompt_embeds"] = randn(count, pooled, seed=seed + 1, dtype=torch.float32)
    return Condition(tensors)


def network(k: Any = 2, channels=3, width: Any = 8, depth=4, disturbed=True, **settings: Any):
    made = SpectralNoise(channels, 6, k=k, width=width, depth=depth, **settings).double()
    if disturbed:
        disturb(made, scale=0.2)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_starts_as_nothing_bit_for_bit(dtype):
    fresh = SpectralNoise(3, 6, k=2)
    noise = randn(4, 3, 8, 6, dtype=torch.float32).to(dtype)
    residual = fresh(noise, prompts(4))
    assert not residual.any()
    assert torch.equal(noise + residual.to(dtype), noise)
    assert not fresh.kl(noise, prompts(4)).any()
    assert isinstance(fresh, NoiseNetwork)


def test_the_basis_is_orthonormal_and_low():
    for size in (4, 7, 16):
        basis = cosine_basis(size)
        assert torch.allclose(basis @ basis.T, torch.eye(size, dtype=torch.float64), atol=1e-14)
        turns = (basis[:, 1:].sign() * basis[:, :-1].sign() < 0).sum(1)
        assert turns.tolist() == list(range(size))


def test_only_the_low_frequencies_move():
    noise, f = randn(2, 3, 8, 6), network()
    residual = f(noise, prompts(2))
    terms = cosine_basis(8) @ residual @ cosine_basis(6).T
    assert terms[..., :2, :2].abs().min() > 1e-6
    terms[..., :2, :2] = 0
    assert terms.abs().max() < 1e-14


def test_a_sample_sees_only_its_own_low_frequencies_and_prompt():
    noise, f, c = randn(3, 3, 8, 6), network(), prompts(3)
    residual = f(noise, c)
    assert torch.allclose(f(noise[1:2], c[1:2]), residual[1:2], atol=1e-14)
    high = cosine_basis(8)[5][:, None] * cosine_basis(6)[4]
    assert torch.allclose(f(noise + high, c), residual, atol=1e-13)
    assert (f(noise, prompts(3, seed=4)) - residual).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "depth"), [(1, 3), (2, 1), (5, 4), (12, 6)])
def test_the_log_determinant_is_the_jacobians_and_the_inverse_inverts(size, depth):
    flow = _trainable(CouplingFlow(size, width=6, depth=depth).double())
    disturb(flow)
    u, e = randn(3, size), randn(3, 6, seed=1)
    h, volume, _ = flow.terms(u, e)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda v, i=i: v + flow(v[None], e[i : i + 1])[0], u[i]) for i in range(3)]
    )
    assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, volume, atol=1e-12)
    assert volume.abs().min() > 1e-3
    back, again = flow.inverse(u + h, e)
    assert torch.allclose(back, u, atol=1e-12)
    assert torch.allclose(again, volume, atol=1e-12)
    density = torch.autograd.functional.jacobian(lambda z: _log_density(flow, z, e).sum(), u + h)
    assert torch.allclose(flow.score(u + h, e), density, atol=1e-12)


def _trainable(flow):
    flow.trainable_parameters = lambda: list(flow.parameters())  # which `disturb` asks for
    return flow


def _log_density(flow, z, e):
    u, volume = flow.inverse(z, e)
    return -0.5 * u.square().sum(1) - volume


def test_every_coefficient_is_moved_and_sees_all_others():
    flow = _trainable(CouplingFlow(7, width=6, depth=4).double())
    disturb(flow)
    e = randn(1, 6, seed=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None], e)[0], randn(7))
    assert (jacobian != 0).all()


def test_kl_is_the_kl_of_the_noise():
    """By quadrature over both coefficients, and against the whole Jacobian of f on the grid."""
    f = network(k=1, channels=2)
    u, weights = nodes(40)
    noise = randn(1, 2, 4, 4) - low_of(randn(1, 2, 4, 4)) + on_grid(u)
    c = prompts(1)
    c = Condition({name: tensor.expand(len(u), *tensor.shape[1:]) for name, tensor in c.tensors.items()})
    with torch.no_grad():
        kl = (weights * f.kl(noise, c)).sum()
        h = f(noise, c).mean((2, 3)) * 4
    assert (weights @ h.square()).sum() > 1e-2
    jacobian = torch.func.vmap(
        torch.func.jacrev(lambda x: f(x[None], c[:1])[0].flatten()), in_dims=0
    )(noise[::20]).flatten(2).reshape(len(u[::20]), 32, 32)  # fmt: skip
    volume = torch.linalg.slogdet(torch.eye(32).double() + jacobian).logabsdet
    rest = 0.5 * h.square().sum(1) + (u * h).sum(1)
    exact = (weights * (rest - f.map.terms(u, f.embed(described(c).double()))[1])).sum()
    assert torch.allclose(volume, f.map.terms(u, f.embed(described(c).double()))[1][::20], atol=1e-10)
    assert kl.item() == pytest.approx(exact.item(), abs=1e-8)


def nodes(count):
    """Gauss-Hermite points [count², 2] of two standard normal numbers, and their weights."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    pairs = torch.tensor(list(itertools.product(points, points)))
    return pairs, torch.tensor([a * b for a, b in itertools.product(weights, weights)]) / (2 * math.pi)


def on_grid(u):
    """Coefficients [N, 2] of frequency 0 as noise [N, 2, 4, 4]."""
    return (u / 4)[:, :, None, None].expand(-1, -1, 4, 4)


def low_of(noise):
    return noise.mean((2, 3), keepdim=True).expand_as(noise)


def test_the_gradient_is_along_the_path_by_finite_differences():
    """Of log q(z) − log φ(z) with q held, at every parameter."""
    f = network(k=2, channels=2, width=4, depth=2)
    noise, c = randn(5, 2, 4, 4), prompts(5)
    parameters = f.trainable_parameters()
    gradients = torch.autograd.grad(f.kl(noise, c).sum(), parameters)
    held = copy.deepcopy(f)
    u, e, _ = held._seen(noise, c, None)

    @torch.no_grad()
    def along():
        now, embedded, _ = f._seen(noise, c, None)
        z = now + f.map(now, embedded)
        return (_log_density(held.map, z, e) + 0.5 * z.square().sum(1)).sum().item()

    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.detach().view(-1)
        for place in range(flat.numel()):
            kept, ends = flat[place].item(), []
            for step in (1e-5, -1e-5):
                flat[place] = kept + step
                ends.append(along())
            flat[place] = kept
            found = (ends[0] - ends[1]) / 2e-5
            assert gradient.view(-1)[place].item() == pytest.approx(found, abs=1e-7)


def test_the_gradients_mean_is_that_of_the_kl():
    """By quadrature: the score that the path gradient leaves out has mean 0."""
    f = network(k=1, channels=2, width=6, depth=2)
    u, weights = nodes(40)
    e = f.embed(described(prompts(1)).double()).expand(len(u), -1)
    parameters = list(f.map.parameters())
    path = torch.autograd.grad((weights * f.map.kl(u, e)).sum(), parameters, retain_graph=True)
    h, volume, stein = f.map.terms(u, e)
    whole = torch.autograd.grad((weights * (0.5 * h.square().sum(1) + stein - volume)).sum(), parameters)
    assert max(gradient.abs().max() for gradient in whole) > 1e-2
    for ours, theirs in zip(path, whole, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)


def test_a_shift_of_the_prompts_has_a_kl_without_variance():
    f = network(disturbed=False)
    with torch.no_grad():
        f.map.last.bias[12:] = randn(12)
    residual = f(randn(50, 3, 8, 6), prompts(50))
    kl = f.kl(randn(50, 3, 8, 6), prompts(50))
    assert torch.allclose(kl, 0.5 * residual.flatten(1).square().sum(1), atol=1e-12)


@pytest.mark.parametrize(
    ("turn", "depth", "steps", "gap", "error"),
    [(0.0, 0, 400, 1e-10, 1e-6), (0.6, 1, 500, 1e-5, 1e-3)],
    ids=["along the axes", "across them"],
)
def test_a_quadratic_reward_of_a_linear_generator_is_learned_to_the_tilted_gaussian(turn, depth, steps, gap, error):
    """r(z) = b·z − ½ zᵀ A z tilts N(0, I) to N(Σ b, Σ), Σ = (I + A)⁻¹: trained on random noise, compared by quadrature.

    Across the axes T is linear in the other coefficient, which a perceptron only comes near.
    """
    cosine, sine = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    a = rotation @ torch.diag(torch.tensor([1.5, 0.4], dtype=torch.float64)) @ rotation.T
    b, identity = torch.tensor([1.2, -0.7], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    covariance = torch.linalg.inv(identity + a)
    mean = covariance @ b
    kl = 0.5 * (mean @ mean + covariance.trace() - 2 - torch.logdet(covariance))
    least = 0.5 * (torch.logdet(identity + a) - b @ mean)  # of the objective, −log E[exp r]
    torch.manual_seed(0)
    flow, e = CouplingFlow(2, width=16, depth=depth).double(), torch.ones(1, 16, dtype=torch.float64)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(0)

    def terms(u):
        own = e.expand(len(u), -1)
        z = u + flow(u, own)
        return flow.kl(u, own), z, z @ b - 0.5 * (z @ a * z).sum(1)

    for _ in range(steps):
        own_kl, _, reward = terms(torch.randn(32, 2, generator=draw, dtype=torch.float64))
        optimizer.zero_grad()
        (own_kl - reward).mean().backward()
        optimizer.step()
        schedule.step()
    u, weights = nodes(40)
    with torch.no_grad():
        own_kl, z, reward = terms(u)
    assert (weights @ (own_kl - reward)).item() - least.item() == pytest.approx(0, abs=gap)
    assert (weights @ own_kl).item() == pytest.approx(kl.item(), abs=error)
    assert torch.allclose(weights @ z, mean, atol=error)
    assert torch.allclose((weights[:, None] * (z - mean)).T @ (z - mean), covariance, atol=10 * error)


@pytest.mark.parametrize("pooled", [0, 4])
def test_prompts_are_described_by_what_the_mask_shows(pooled):
    c = prompts(2, tokens=5, pooled=pooled)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    masked = described(Condition({**c.tensors, "prompt_attention_mask": mask}))
    cut = Condition({name: t[:1, :3] if t.ndim == 3 else t[:1] for name, t in c.tensors.items()})
    assert torch.allclose(masked[:1], described(cut))
    assert torch.allclose(masked[1:], described(c)[1:])
    assert masked.shape == (2, 6 + pooled)
    for part in masked.split([6, pooled] if pooled else [6], dim=1):
        assert torch.allclose(part.mean(1), torch.zeros(2), atol=1e-6)


def test_queries_weigh_the_tokens_that_the_mask_shows():
    tokens = prompts(2, tokens=5).tensors["prompt_embeds"]
    hidden = {"prompt_embeds": tokens, "prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    plain = _weighed(hidden, torch.zeros(2, 6))
    assert torch.allclose(plain, described(Condition(hidden)).repeat(1, 2))
    third, last = _weighed(hidden, 1e3 * tokens[0, [2, 4]])[0].split(6)
    assert torch.allclose(third, layer_norm(tokens[0, 2], (6,)), atol=1e-5)
    assert (last - layer_norm(tokens[0, 4], (6,))).abs().max() > 0.1  # it is hidden
    f = network(token_width=6)
    f(randn(2, 3, 8, 6), prompts(2)).square().sum().backward()
    assert f.queries.grad.abs().min() > 0
    assert f.settings["token_width"] == 6
    with pytest.raises(InputError, match="for tokens of 6 numbers; these have 4"):
        f(randn(2, 3, 8, 6), prompts(2, width=4, pooled=2))


@pytest.mark.parametrize(("token_width", "least", "most"), [(16, 0.95, 1.01), (0, -0.1, 0.3)])
def test_the_one_word_that_counts_is_found_among_padding(token_width, least, most):
    """Of what prompts can bring an objective with a known optimum: one word of 6, in 77 tokens, names the target."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw)

    vocabulary, padding, targets = normal(60, 16), normal(16), 2 * normal(4, 4)
    f = SpectralNoise(4, 16, k=1, width=32, depth=0, token_width=token_width)

    def objective(count):
        which = torch.randint(4, (count,), generator=draw)
        words = torch.randint(4, 60, (count, 6), generator=draw)
        words[torch.arange(count), torch.randint(6, (count,), generator=draw)] = which
        tokens = torch.cat([vocabulary[words], padding.expand(count, 71, 16)], 1)
        noise, condition = normal(count, 4), Condition({"prompt_embeds": tokens})
        missed = noise + f(noise, condition) - targets[which]
        return (f.kl(noise, condition) + 2 * missed.square().sum(1)).mean()

    optimizer = torch.optim.AdamW(f.parameters(), lr=1e-2, weight_decay=0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        optimizer.zero_grad()
        objective(64).backward()
        optimizer.step()
    middle = targets.mean(0)
    blind = 2 * (targets - middle).square().sum(1).mean() + 0.4 * middle.square().sum()
    seeing = 0.4 * targets.square().sum(1).mean()
    with torch.no_grad():
        share = (blind + 2 * math.log(5) - objective(4000)) / (blind - seeing)
    assert least < share < most


def test_a_residual_maps_kl_is_that_of_its_whole_jacobian_and_trains():
    made = network(channels=2, depth=2, map="residual", seed=3)
    assert made.settings["map"] == "residual"
    noise, c = randn(3, 2, 8, 6), prompts(3)
    u, e, _ = made._seen(noise, c, None)
    whole = torch.stack(
        [torch.func.jacrev(lambda one, i=i: made.map(one[None], e[i : i + 1])[0])(u[i]) for i in range(3)]
    )
    h, eye = made.map(u, e), torch.eye(8, dtype=torch.float64)
    expected = 0.5 * h.square().sum(1) + torch.stack([one.trace() - (eye + one).logdet() for one in whole])
    assert torch.allclose(made.kl(noise, c), expected, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(made.kl(noise, c), expected, atol=1e-12)
    weight, step = made.map.hidden[0][0].weight, 1e-6
    (gradient,) = torch.autograd.grad(made.kl(noise, c).sum(), weight)
    with torch.no_grad():
        weight[1, 2] += step
        above = made.kl(noise, c).sum()
        weight[1, 2] -= 2 * step
        below = made.kl(noise, c).sum()
    assert abs(gradient[1, 2]) > 1e-6
    assert gradient[1, 2].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-5)
    assert estimate_kl(network(channels=2), noise, c).own
    assert not estimate_kl(made, noise, c).own  # it may fold: diagnose must not call its KL exact
    fresh = SpectralNoise(3, 6, k=2, map="residual")
    assert not fresh(noise.float()[:, :1].expand(-1, 3, -1, -1), c).any()
    with pytest.raises(InputError, match="unknown map 'residul'; did you mean 'residual'"):
        network(map="residul")


def test_any_grid_size_is_taken():
    f = network(k=2)
    for size in ((8, 8), (4, 12), (2, 2), (9, 5)):
        noise = randn(2, 3, *size)
        assert f(noise, prompts(2)).shape == noise.shape
    flat = torch.ones(1, 3, 1, 1).double()  # coefficients, not pixels, are what the map sees
    small, large = (f(0.7 * flat.expand(1, 3, n, n) / n, prompts(1)) for n in (4, 8))
    assert torch.allclose(small.mean((2, 3)) * 4, large.mean((2, 3)) * 8, atol=1e-12)


def test_packed_noise_is_the_unpacked_one():
    grid, tokens = network(k=2), network(k=2, patch=2, grid=(4, 3))
    x = randn(2, 3, 8, 6)
    packed = x.view(2, 3, 4, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 12, 12)  # as FluxPipeline._pack_latents
    cells = packed.mT.reshape(2, 12, 4, 3)  # as Flux2KleinPipeline takes it
    assert torch.equal(unpacked(packed, 2, (4, 3)), x)
    residual, c = grid(x, prompts(2)), prompts(2)
    assert torch.allclose(unpacked(tokens(packed, c), 2, (4, 3)), residual)
    assert torch.allclose(unpacked(tokens(cells, c), 2, None), residual)
    assert torch.allclose(tokens.kl(packed, c), grid.kl(x, c))
    wide = x.mT.contiguous().view(2, 3, 3, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 12, 12)
    assert torch.allclose(unpacked(tokens(wide, c, grid=(3, 4)), 2, (3, 4)), grid(x.mT, c))


def test_a_modules_vector_is_a_grid_of_one_cell_and_its_label_or_embedding_the_prompt():
    f, alone = SpectralNoise(5, 3, k=1, width=8).double(), SpectralNoise(5, 1, k=1, width=8).double()
    disturb(f, scale=0.2)
    x, labels = randn(4, 5), Condition({"embedding": torch.tensor([0, 1, 2, 1])})
    rows = Condition({"embedding": torch.eye(3)[[0, 1, 2, 1]]})
    residual = f(x, labels)
    assert torch.equal(residual, f.map(x, f.embed(torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]])))
    assert torch.equal(residual, f(x, rows))
    assert torch.equal(f.kl(x, labels), f.kl(x, rows))
    assert (f(x[:1], labels[2:3]) - residual[:1]).abs().max() > 1e-3
    jacobian = torch.func.jacrev(lambda z: f(z[None], labels[:1])[0])(x[0])
    volume = f.map.terms(x[:1], f.embed(torch.eye(3, dtype=torch.float64)[:1]))[1]
    assert torch.linalg.slogdet(torch.eye(5) + jacobian).logabsdet.item() == pytest.approx(volume.item())
    assert alone(x, Condition({"index": torch.arange(4)})).shape == x.shape
    with pytest.raises(InputError, match="an embedding has 3 numbers"):
        SpectralNoise(5, 4, k=1).double()(x, rows)


def test_settings_rebuild_it_and_its_state_is_strict():
    f = network(patch=2, grid=(4, 3))
    again = SpectralNoise(**f.settings, seed=5).double()
    again.load_trainable_state({name: tensor.clone() for name, tensor in f.trainable_state().items()})
    noise = randn(2, 12, 12)
    assert torch.equal(again(noise, prompts(2)), f(noise, prompts(2)))
    assert {id(p) for p in f.trainable_parameters()} == {id(p) for p in f.parameters()}
    with pytest.raises(InputError, match="does not fit"):
        network(k=1).load_trainable_state(f.trainable_state())


def test_mistakes_get_one_clear_line():
    f = network(k=4)
    with pytest.raises(InputError, match="k = 4 frequencies do not fit into a latent grid of 8 x 3"):
        f(randn(1, 3, 8, 3), prompts(1))
    with pytest.raises(InputError, match="is for 3 latent channels; this noise has 4"):
        f(randn(1, 4, 8, 8), prompts(1))
    with pytest.raises(InputError, match="text width 6; these have 10"):
        f(randn(1, 3, 8, 8), prompts(1, pooled=4))
    with pytest.raises(InputError, match="needs prompt_embeds; this generator has tokens"):
        f(randn(1, 3, 8, 8), Condition({"tokens": torch.ones(1, 6)}))
    tokens = network(patch=2)
    with pytest.raises(InputError, match="has 16 tokens, which do not fill the grid None"):
        tokens(randn(1, 16, 12), prompts(1))
    with pytest.raises(InputError, match=r"has 16 tokens, which do not fill the grid \(4, 5\)"):
        tokens(randn(1, 16, 12), prompts(1), grid=(4, 5))
    with pytest.raises(InputError, match="6 channels does not hold patches of 2 x 2"):
        tokens(randn(1, 6, 4, 4), prompts(1))
    wrong: dict[str, Any]
    for wrong in ({"k": 0}, {"width": 1.5}, {"depth": -1}, {"patch": True}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
            network(**wrong)
