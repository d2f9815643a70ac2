import json
import os
import signal
import threading

import pytest
import torch

from hypernoise.adapters import read_about, save_adapter
from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.checkpoint import checkpoints
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import train
from hypernoise.training.run import make_optimizer

PROMPTS = ["a red circle", "two blue rings", "a green cross", "a ring", "a black square"]


def build(sd_pipeline):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    return generator, LoRANoise(generator, rank=4)


def config(**changes):
    return TrainConfig(
        **{
            "max_train_steps": 6,
            "train_batch_size": 4,
            "learning_rate": 1e-2,
            "kl_weight": 0.1,
            "lr_warmup_steps": 2,
            **changes,
        }
    )


def run(sd_pipeline, settings, output_dir=None, reward=None):
    generator, network = build(sd_pipeline)
    reward = reward or WeightedSum({"redness": 20.0})
    result = train(generator, network, reward, PROMPTS, settings, output_dir=output_dir, progress=False)
    return generator, network, result


def state(network):
    return {name: tensor.clone() for name, tensor in network.trainable_state().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_frozen_weights_are_bit_identical_and_the_lora_moved(sd_pipeline):
    generator, network = build(sd_pipeline)
    frozen = {n: p.clone() for n, p in generator.denoiser.named_parameters() if not p.requires_grad}
    others = [p.clone() for m in (generator.pipeline.vae, generator.pipeline.text_encoder) for p in m.parameters()]
    before = state(network)
    train(generator, network, WeightedSum({"redness": 20.0}), PROMPTS, config(), progress=False)
    now = dict(generator.denoiser.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())
    kept = [p for m in (generator.pipeline.vae, generator.pipeline.text_encoder) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, others, strict=True))
    moved = [name for name, tensor in network.trainable_state().items() if not torch.equal(tensor, before[name])]
    assert len(moved) == len(before)


def test_the_reward_rises_and_the_first_step_is_the_base(sd_pipeline):
    *_, result = run(sd_pipeline, config(max_train_steps=40, train_batch_size=8, learning_rate=2e-2, kl_weight=0.01))
    assert result.history[0]["kl"] == 0.0
    assert result.history[-1]["kl"] > 0
    first, last = (sum(row["reward"] for row in rows) / 5 for rows in (result.history[:5], result.history[-5:]))
    assert last > first + 0.05


def test_same_seed_same_numbers(sd_pipeline):
    first, second, other = (run(sd_pipeline, config(seed=seed)) for seed in (0, 0, 1))
    assert same(state(first[1]), state(second[1]))
    assert not same(state(first[1]), state(other[1]))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resume_equals_no_interruption(sd_pipeline, tmp_path, optimizer):
    settings = dict(optimizer=optimizer, lr_scheduler="constant", checkpointing_steps=2)
    whole = run(sd_pipeline, config(max_train_steps=6, **settings))
    run(sd_pipeline, config(max_train_steps=4, **settings), output_dir=tmp_path)
    resumed = run(sd_pipeline, config(max_train_steps=6, **settings), output_dir=tmp_path)
    assert [row["step"] for row in resumed[2].history] == [5, 6]
    assert same(state(whole[1]), state(resumed[1]))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole[2].history]


def test_accumulation_changes_nothing_but_memory(sd_pipeline):
    whole, parts = (run(sd_pipeline, config(gradient_accumulation_steps=n))[2].history for n in (1, 2))
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], rel=1e-4)


def test_checkpoints_are_whole_adapters_and_only_two_are_kept(sd_pipeline, tmp_path):
    _, network, result = run(sd_pipeline, config(checkpointing_steps=1), output_dir=tmp_path)
    assert [c.name for c in checkpoints(tmp_path)] == ["checkpoint-000005", "checkpoint-000006"]
    assert result.checkpoint == checkpoints(tmp_path)[-1]
    assert read_about(result.checkpoint)["training"]["steps"] == 6
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_resuming_with_other_settings_is_refused(sd_pipeline, tmp_path):
    run(sd_pipeline, config(max_train_steps=2), output_dir=tmp_path)
    with pytest.raises(InputError, match=r"was trained with learning_rate = 0.01, not 0.5"):
        run(sd_pipeline, config(learning_rate=0.5), output_dir=tmp_path)


def test_fewer_steps_than_the_checkpoint_has_are_refused(sd_pipeline, tmp_path):
    run(sd_pipeline, config(max_train_steps=4), output_dir=tmp_path)
    with pytest.raises(InputError, match="at step 4, beyond max_train_steps 2"):
        run(sd_pipeline, config(max_train_steps=2), output_dir=tmp_path)


def test_without_resume_an_earlier_runs_checkpoints_go(sd_pipeline, tmp_path):
    run(sd_pipeline, config(max_train_steps=6, checkpointing_steps=3), output_dir=tmp_path)
    generator, network = build(sd_pipeline)
    reward = WeightedSum({"redness": 20.0})
    result = train(
        generator,
        network,
        reward,
        PROMPTS,
        config(max_train_steps=2),
        output_dir=tmp_path,
        resume_from_checkpoint=False,
        progress=False,
    )
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-000002"] == [result.checkpoint]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_resume_on_other_base_weights_is_refused(sd_pipeline, tmp_path):
    run(sd_pipeline, config(max_train_steps=2), output_dir=tmp_path)
    generator = DiffusionGenerator(sd_pipeline(seed=5), name="tiny")
    with pytest.raises(InputError, match="other weights"):
        train(
            generator,
            LoRANoise(generator, rank=4),
            WeightedSum({"redness": 20.0}),
            PROMPTS,
            config(max_train_steps=4),
            output_dir=tmp_path,
            progress=False,
        )


def test_a_reward_with_chance_in_it_resumes_to_the_same_numbers(sd_pipeline, tmp_path):
    def noisy(pixels, prompts):
        return 20 * (pixels * torch.rand(pixels.shape)).flatten(1).mean(1)

    whole = run(sd_pipeline, config(), reward=noisy)
    run(sd_pipeline, config(max_train_steps=3), output_dir=tmp_path, reward=noisy)
    resumed = run(sd_pipeline, config(), output_dir=tmp_path, reward=noisy)
    assert same(state(whole[1]), state(resumed[1]))


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(sd_pipeline, tmp_path):
    calls = 0

    def reward(pixels, prompts):
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return pixels.flatten(1).mean(1)

    before = signal.getsignal(signal.SIGINT)
    _, _, result = run(sd_pipeline, config(max_train_steps=50), output_dir=tmp_path, reward=reward)
    assert (result.step, result.finished) == (3, False)
    assert result.checkpoint == tmp_path / "checkpoint-000003"
    assert signal.getsignal(signal.SIGINT) is before


def test_trains_outside_the_main_thread(sd_pipeline):
    steps = []
    thread = threading.Thread(target=lambda: steps.append(run(sd_pipeline, config(max_train_steps=1))[2].step))
    thread.start()
    thread.join()
    assert steps == [1]


def test_bf16_autocast_keeps_the_lora_in_fp32(sd_pipeline):
    _, network, result = run(sd_pipeline, config(mixed_precision="bf16", max_train_steps=3))
    assert {p.dtype for p in network.trainable_parameters()} == {torch.float32}
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in result.history)
    assert result.history[-1]["kl"] > 0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda pixels, prompts: pixels.detach().flatten(1).mean(1), "gradient is cut"),
        (lambda pixels, prompts: pixels.round().flatten(1).mean(1), "gradient is cut"),
        (lambda pixels, prompts: torch.ones(len(pixels), requires_grad=True), "gradient is cut"),
        (lambda pixels, prompts: pixels.flatten(1).mean(1) / 0, "6 of the last 6 steps were .* the reward is inf for"),
        (
            lambda pixels, prompts: (pixels.flatten(1).mean(1) * 0).sqrt() + pixels.mean((1, 2, 3)),
            "the gradient of the reward is nan for 'a",
        ),
    ],
)
def test_broken_rewards_stop_the_run_with_a_reason(sd_pipeline, reward, message):
    with pytest.raises(InputError, match=message):
        run(sd_pipeline, config(), reward=reward)


def test_a_member_whose_gradient_is_cut_is_named(sd_pipeline):
    """The sum has a gradient, so without the check the member would silently train nothing."""

    def sharpness(pixels, prompts):
        return pixels.detach().diff(dim=-1).abs().flatten(1).mean(1)

    reward = WeightedSum({"redness": 20.0, "sharpness": 1.0}, {"sharpness": sharpness})
    with pytest.raises(InputError, match="reward 'sharpness': the gradient is cut"):
        run(sd_pipeline, config(), reward=reward)


def test_members_rewards_are_means_over_the_rounds_too(sd_pipeline):
    *_, result = run(
        sd_pipeline, config(max_train_steps=1, gradient_accumulation_steps=2), reward=WeightedSum({"redness": 20.0})
    )
    (row,) = result.history
    assert row["reward/redness"] == pytest.approx(row["reward"] / 20, rel=1e-5)


def test_resuming_with_other_reward_settings_is_refused(sd_pipeline, tmp_path):
    def reward(**settings):
        return WeightedSum({"redness": 20.0}, settings=RewardSettings(**settings))

    run(sd_pipeline, config(max_train_steps=2), output_dir=tmp_path, reward=reward())
    with pytest.raises(InputError, match="was trained with rewards = {'redness': 20.0}, not {.*, 'dtype': 'bfloat16'}"):
        run(sd_pipeline, config(), output_dir=tmp_path, reward=reward(dtype="bfloat16"))


@pytest.mark.parametrize(
    ("place", "given", "message"),
    [
        (
            0,
            "scenes",
            "the generator is a str; pass what load_generator .* or a subclass of hypernoise.gen",
        ),
        (1, LoRANoise, "the network is the class LoRANoise; pass a LoRANoise.* or a subclass of hypernoise.noise.base"),
        (4, {"max_train_steps": 1}, "the config is a dict; pass a TrainConfig"),
    ],
)
def test_other_things_than_it_takes_are_named(generator, place, given, message):
    arguments = [generator, LoRANoise(generator, rank=2), WeightedSum({"redness": 1.0}), ["a ring"], config()]
    arguments[place] = given
    with pytest.raises(InputError, match=message):
        train(*arguments)


def test_a_network_of_ones_own_with_a_kl_is_trained_on_it(generator):
    class Shift(NoiseNetwork):
        kind, settings = "shift", {}

        def __init__(self):
            super().__init__()
            self.by = torch.nn.Parameter(torch.zeros(generator.noise_shape))

        def forward(self, noise, condition):
            return self.by.expand_as(noise)

        def kl(self, noise, condition):
            return 7 + self.by.square().sum().expand(len(noise))

    result = train(generator, Shift(), WeightedSum({"redness": 1.0}), ["a ring"], config(max_train_steps=1))
    assert result.history[0]["kl"] == 7


def test_a_wrong_validation_reward_is_found_at_the_first_step(generator):
    arguments = [generator, LoRANoise(generator, rank=2), WeightedSum({"redness": 1.0}), ["a ring"]]
    with pytest.raises(InputError, match="the validation reward returned shape"):
        train(*arguments, config(max_train_steps=1), validation_reward=lambda pixels, prompts: pixels.mean())
    result = train(
        *arguments, config(max_train_steps=1), validation_reward=lambda pixels, prompts: pixels.mean((1, 2, 3))
    )
    assert "validation_reward" not in result.history[0]  # measured every ten steps


def test_a_residual_of_another_shape_is_refused(generator):
    class Flat(NoiseNetwork):
        def __init__(self):
            super().__init__()
            self.by = torch.nn.Parameter(torch.zeros(1, 1, 1))

        def forward(self, noise, condition):
            return self.by.expand(len(noise), 1, *noise.shape[2:])

    with pytest.raises(InputError, match="the noise network returned a residual of shape"):
        train(generator, Flat(), WeightedSum({"redness": 1.0}), ["a ring"], config(max_train_steps=1))
    with pytest.raises(InputError, match="the network is a Flat; pass a LoRANoise"):
        save_adapter(Flat(), "nowhere", generator=generator)


def test_a_run_whose_metrics_were_deleted_ends(generator, tmp_path, sd_pipeline):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    recipe = {"generator": str(tmp_path / "tiny"), "prompts": "scenes", "rewards": "redness", "train-batch-size": 1}
    flags = [word for name, value in recipe.items() for word in (f"--{name}", value)]
    command = ["train", *map(str, flags), "--max-train-steps", "1", "--device", "cpu"]
    assert main([*command, "--output-dir", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert main([*command, "--output-dir", str(tmp_path / "run")]) == 0


def test_no_prompt_is_refused(generator):
    with pytest.raises(InputError, match="no prompt"):
        train(generator, LoRANoise(generator, rank=2), WeightedSum({"redness": 1.0}), [], config())


def test_one_noise_per_step_is_shared_by_all_samples_and_rounds_of_an_update(sd_pipeline):
    class Watching(LoRANoise):
        def forward(self, noise, condition):
            seen.append(noise.clone())
            return super().forward(noise, condition)

    def noises(**settings):
        seen.clear()
        generator = DiffusionGenerator(sd_pipeline())
        more = config(max_train_steps=2, train_batch_size=4, gradient_accumulation_steps=2, **settings)
        train(generator, Watching(generator, rank=2), WeightedSum({"redness": 20.0}), PROMPTS, more, progress=False)
        return torch.cat(seen).view(2, 4, -1)  # updates, samples

    seen: list[torch.Tensor] = []
    shared, own = noises(one_noise_per_step=True), noises()
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    assert not torch.equal(shared[0, 0], shared[1, 0])
    assert not torch.equal(own[0, 0], own[0, 1])


def test_adam_decays_the_weights_by_the_configured_share():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([weight], TrainConfig(learning_rate=0.5, adam_weight_decay=0.1))
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert torch.allclose(weight, torch.full((3,), 1 - 0.5 * 0.1))
