import pytest
import torch

from hypernoise.generators.module import ModuleGenerator
from hypernoise.noise.residual import ResidualNoise
from hypernoise.objective import exact_kl, l2_kl, limit_gradient, noise_objective
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import train


def test_l2_kl_is_summed_over_dimensions_and_computed_in_fp32():
    residual = torch.full((2, 3, 4, 4), 0.5, dtype=torch.bfloat16)
    assert l2_kl(residual).dtype == torch.float32
    assert l2_kl(residual).tolist() == [6.0, 6.0]  # ½ · 48 · 0.25


def test_objective_weighs_the_kl_and_subtracts_the_reward():
    residual, reward = torch.ones(2, 4), torch.tensor([1.0, 3.0])
    assert noise_objective(l2_kl(residual), reward, kl_weight=0.5).tolist() == [0.0, -2.0]


def test_each_samples_gradient_is_limited_by_itself():
    noise = torch.zeros(3, 2, 2, dtype=torch.float64, requires_grad=True)
    slopes = torch.tensor([0.5, 40.0, 0.0], dtype=torch.float64)  # of each sample's reward, along ones
    ((limit_gradient(noise, 3.0, 1 / 3).sum((1, 2)) * slopes).mean()).backward()
    norms = 3 * noise.grad.flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx([0.5 * 2, 3.0, 0.0])  # below it untouched, above it cut, zero stays
    assert torch.equal(noise.grad[1], noise.grad[1, 0, 0].expand(2, 2))  # its direction is kept


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_wild_sample_does_not_outweigh_the_batch(accumulation):
    """A reward 1,000 times as steep for a few samples: the many others decide what is learned."""
    many, wild = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1000.0])

    def reward(pixels, prompts):
        seen = pixels.flatten(1)
        return torch.where(seen[:, :1].detach() > 1.5, seen @ wild[:, None].double(), seen @ many[:, None].double())[
            :, 0
        ]

    generator = linear_generator(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    learned = {}
    for limit in (0.0, 1.0):
        network = ResidualNoise((1, 1, 4), depth=0).double()
        config = TrainConfig(
            max_train_steps=150,
            train_batch_size=64,
            learning_rate=0.03,
            lr_scheduler="cosine",
            max_grad_norm=1e9,
            sample_clip=limit,
            gradient_accumulation_steps=accumulation,
            kl_limit=0,
        )
        train(generator, network, reward, ["any"], config, progress=False)
        learned[limit] = network(torch.zeros(1, 1, 1, 4, dtype=torch.float64), generator.encode(["any"])).flatten()
    assert learned[0.0][1] < -1.5  # and still on its way
    assert learned[1.0][0] > 0.5
    assert abs(learned[1.0][1]) < 0.5


def test_exact_kl_of_an_affine_residual_equals_the_gaussian_closed_form():
    draw = torch.Generator().manual_seed(0)
    d = 6
    matrix = 0.2 * torch.randn(d, d, generator=draw, dtype=torch.float64)
    shift = torch.randn(d, generator=draw, dtype=torch.float64)
    noise = torch.randn(4000, d, generator=draw, dtype=torch.float64)
    terms = exact_kl(lambda x: x @ matrix.T + shift, noise)
    a = torch.eye(d, dtype=torch.float64) + matrix
    covariance = a @ a.T
    truth = 0.5 * (covariance.trace() + shift @ shift - d - torch.logdet(covariance))
    error = terms.std() / len(terms) ** 0.5
    assert abs(terms.mean() - truth) < 4 * error
    assert error < 0.05 * truth


def test_for_a_shift_the_l2_term_is_the_whole_kl():
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    noise = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(exact_kl(lambda x: x * 0 + shift, noise), l2_kl(shift.expand(5, 3)))


W = torch.tensor(
    [[1.0, 0.5, 0.0, -1.0], [0.0, 2.0, 1.0, 0.0], [-0.5, 0.0, 1.0, 1.0]], dtype=torch.float64
)  # g(x) = W x


def linear_generator(matrix):
    """g(x) = matrix · x over a noise of four dimensions, shown as pixels [B, 1, 1, rows]."""
    module = torch.nn.Linear(4, len(matrix), bias=False).double()
    module.weight.data.copy_(matrix)
    return ModuleGenerator(module, noise_shape=(1, 1, 4), pictures=False)


def linear_problem(reward, *, kl_weight, steps=400, matrix=W):
    """Trains an affine f on g(x) = matrix · x; gives fresh noise, f of it, and the run."""
    generator = linear_generator(matrix)
    network = ResidualNoise((1, 1, 4), depth=0).double()
    config = TrainConfig(
        max_train_steps=steps,
        train_batch_size=64,
        learning_rate=0.03,
        kl_weight=kl_weight,
        lr_scheduler="cosine",
        max_grad_norm=100.0,
    )
    result = train(generator, network, reward, ["any"], config, progress=False)
    noise = torch.randn(4096, 1, 1, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return noise, network(noise, generator.encode(["any"])).detach(), result


def test_linear_generator_and_reward_recover_the_optimal_shift():
    """r = a·g(x), g = W x: the tilted noise is N(Wᵀa/α, I), so f = Wᵀa/α, whatever x (arXiv 2508.09968)."""
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    noise, residual, _ = linear_problem(lambda pixels, prompts: (pixels * a).flatten(1).sum(1), kl_weight=2.0)
    expected = W.T @ a / 2.0
    assert (residual - expected).norm(dim=-1).max() <= 0.02 * expected.norm()


def test_quadratic_reward_recovers_the_tilted_gaussians_mean():
    """r = −½‖x − m‖²: x·exp(r/α) is N(m/(1 + α), α/(1 + α) I). Over constant shifts the optimum of
    E[α·½‖f‖² + ½‖x + f − m‖²] is that mean."""
    m = torch.tensor([2.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    alpha = 0.5
    generator = linear_generator(torch.eye(4, dtype=torch.float64))

    class Shift(ResidualNoise):
        def forward(self, noise, condition):
            return self.network[-1].bias.view(1, 1, 1, 4).expand_as(noise)

    network = Shift((1, 1, 4), depth=0).double()
    config = TrainConfig(
        max_train_steps=600,
        train_batch_size=256,
        learning_rate=0.03,
        kl_weight=alpha,
        lr_scheduler="cosine",
        max_grad_norm=100.0,
    )
    reward = lambda pixels, prompts: -0.5 * (pixels - m).flatten(1).square().sum(1)  # noqa: E731
    train(generator, network, reward, ["any"], config, progress=False)
    found = network.network[-1].bias.detach()
    assert (found - m / (1 + alpha)).norm() <= 0.02 * (m / (1 + alpha)).norm()


def test_quadratic_reward_over_affine_maps_gives_the_l2_objectives_own_optimum():
    """Per x, α·½‖f‖² + ½‖x + f − m‖² is least at f = (m − x)/(1 + α): its mean over x is the tilted mean."""
    m, alpha = torch.tensor([2.0, -1.0, 0.0, 1.0], dtype=torch.float64), 0.5
    reward = lambda pixels, prompts: -0.5 * (pixels - m).flatten(1).square().sum(1)  # noqa: E731
    noise, residual, _ = linear_problem(reward, kl_weight=alpha, steps=800, matrix=torch.eye(4))
    expected = (m - noise) / (1 + alpha)
    assert (residual - expected).norm() <= 0.02 * expected.norm()


def test_loss_falls_and_history_has_a_row_per_step():
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    *_, result = linear_problem(lambda pixels, prompts: (pixels * a).flatten(1).sum(1), kl_weight=1.0, steps=60)
    assert [row["step"] for row in result.history] == list(range(1, 61))
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 1.0
    assert result.history[0]["kl"] == pytest.approx(0.0, abs=1e-12)
