"""Every stage of the generator's and the reward's making runs at a tiny size, and resumes to the same weights."""

import re
from pathlib import Path
from shutil import copy

import pytest
import torch
from safetensors.torch import load_file

from dev.scenes import distil, networks, reward
from dev.scenes.autoencoder import AutoencoderConfig, build_autoencoder, train_autoencoder
from dev.scenes.critic import Critic, critic_loss, critic_pull
from dev.scenes.decoder import DecoderConfig, grown, train_decoder
from dev.scenes.distil import DistilConfig, train_generator
from dev.scenes.flow import FlowConfig, train_flow
from dev.scenes.latents import LatentsConfig, make_latents, read_latents
from dev.scenes.match import MatchConfig, train_matched
from dev.scenes.matcher import build_matcher
from dev.scenes.networks import WIDTH, build_tokenizer, build_unet
from dev.scenes.pipeline import PipelineConfig, report, save_pipeline
from dev.scenes.training import TrainState
from hypernoise.errors import InputError
from hypernoise.generators.registry import load_generator

SMALL = dict(steps=4, batch_size=4, checkpoint_every=2)


def until_finished(output, *, flow=False):
    """The autoencoder, latents and, where a stage needs it, the flow."""
    train_autoencoder(AutoencoderConfig(output=output, **SMALL))
    make_latents(LatentsConfig(output=output, chunks=1, pictures=8))
    if flow:
        train_flow(FlowConfig(output=output, **SMALL))


STAGES = {
    "flow": (train_flow, FlowConfig, SMALL, "flow.safetensors"),
    "generator": (
        train_generator,
        DistilConfig,
        {**SMALL, "batch_size": 8, "chunks": 1, "pairs": 8, "flow_steps": 2},
        "generator.safetensors",
    ),
    "matched": (train_matched, MatchConfig, {**SMALL, "batch_size": 8, "lead": 1}, "matched.safetensors"),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_resumed_stage_ends_at_the_same_weights(tmp_path, monkeypatch, name):
    train, config, small, file = STAGES[name]
    found = []
    for killed in (False, True):
        output = tmp_path / str(killed)
        output.mkdir()
        until_finished(output, flow=name != "flow")
        if name == "matched":
            copy(output / "flow.safetensors", output / "generator.safetensors")
        settings = config(output=output, **small)
        if killed:
            save = TrainState.save

            def save_then_die(state, save=save):
                save(state)
                if state.name == name and state.step == 2:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patched:
                patched.setattr(TrainState, "save", save_then_die)
                with pytest.raises(KeyboardInterrupt):
                    train(settings)
        train(settings)
        found.append(load_file(output / file))
    whole, parts = found
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_the_decoder_stage_leaves_the_encoder_alone(tmp_path):
    until_finished(tmp_path, flow=True)
    train_decoder(DecoderConfig(output=tmp_path, **SMALL))
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("autoencoder", "autoencoder-final"))
    encoder = [key for key in before if key.startswith("encoder.")]
    assert encoder
    assert all(torch.equal(before[key], after[key]) for key in encoder)
    assert not torch.equal(before["decoder.layers.0.weight"], after["decoder.layers.0.weight"])


def test_a_grown_decoder_decodes_as_before():
    torch.manual_seed(0)
    first, latents = build_autoencoder(), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.allclose(grown(first).decode(latents).sample, first.decode(latents).sample, atol=1e-5)


def test_latents_are_kept_with_their_captions(tmp_path):
    until_finished(tmp_path)
    latents, captions = read_latents(tmp_path)
    assert latents.shape == (8, 4, 8, 8)
    assert len(captions) == 8


def test_the_finished_pipeline_draws(tmp_path):
    until_finished(tmp_path, flow=True)
    train_generator(DistilConfig(output=tmp_path, **STAGES["generator"][2]))
    train_decoder(DecoderConfig(output=tmp_path, **SMALL))
    generator = load_generator(save_pipeline(PipelineConfig(output=tmp_path)), device="cpu")
    noise = torch.randn(2, *generator.noise_shape)
    assert generator.sample(noise, generator.encode(["a ring", "two squares"])).shape == (2, 3, 64, 64)


def test_a_missing_stage_is_named_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"generator\.safetensors is missing"):
        save_pipeline(PipelineConfig(output=tmp_path))
    with pytest.raises(InputError, match=r"run python -m dev\.scenes\.latents"):
        read_latents(tmp_path)


def test_the_stored_weights_make_the_generator_of_the_docs(tmp_path, capsys):
    for file in (Path(networks.__file__).parent / "weights").glob("*.safetensors"):
        copy(file, tmp_path)
    config = PipelineConfig(output=tmp_path, weights="matched", captions=8, steps=(1,))
    report(config, save_pipeline(config))
    score, artefacts = map(float, re.findall(r"(?:score|artefacts) ([\d.]+)", capsys.readouterr().out))
    assert score > 0.65
    assert artefacts < 0.2


def test_distance_prefers_one_of_two_answers_to_their_blend():
    """Of three targets two are alike: the least squared error is a third of the way, the least distance at the two."""
    a, b = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    errors = [2 * distil.distance(x, a) + distil.distance(x, b) for x in (a, a + 1 / 3, b)]
    assert torch.stack(errors).argmin() == 0


def test_the_critic_pulls_the_drawn_towards_the_true_and_leaves_the_unet_alone():
    torch.manual_seed(0)
    unet = build_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    critic = Critic(unet)
    true, drawn = torch.randn(8, 4, 8, 8) + 2, torch.randn(8, 4, 8, 8)
    t, states = torch.full((8,), 100), torch.randn(8, 24, WIDTH)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for _ in range(60):
        loss = critic_loss(critic, true, drawn, t, states, states.roll(1, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = drawn.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic_pull(critic, true, moved, t, states), moved)
    assert (-slope).mean() > 0  # down the loss is up, towards the true
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_reward_learns_from_its_teacher_and_resumes(tmp_path, monkeypatch):
    torch.manual_seed(0)
    build_matcher(build_tokenizer(tmp_path / "tokenizer"), layers=4).save_pretrained(tmp_path / "teacher")
    found = []
    for killed in (False, True):
        settings = reward.RewardConfig(teacher=tmp_path / "teacher", output=tmp_path / str(killed), tested=1, **SMALL)
        settings.output.mkdir()
        if killed:
            save = TrainState.save

            def save_then_die(state, save=save):
                save(state)
                raise KeyboardInterrupt

            with monkeypatch.context() as patched:
                patched.setattr(TrainState, "save", save_then_die)
                with pytest.raises(KeyboardInterrupt):
                    reward.train_reward(settings)
        reward.train_reward(settings)
        found.append(load_file(settings.output / "matcher" / "model.safetensors"))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
