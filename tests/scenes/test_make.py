import json
import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file

from hypernoise.scenes import make, networks
from hypernoise.scenes.judge import judge
from hypernoise.scenes.networks import WORDS, build_tokenizer
from hypernoise.scenes.prompts import split
from hypernoise.scenes.world import CATEGORIES, COLORS, Request, all_requests, draw

SMALL = dict(
    device="cpu",
    autoencoder_steps=4,
    generator_steps=4,
    batch_size=4,
    checkpoint_every=2,
    judged=1,
)


def test_every_word_of_the_world_is_one_token_and_others_are_spelt(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    assert [word for word in WORDS if len(tokenizer(word).input_ids) != 3] == []
    spelt = tokenizer("zebra!").input_ids
    assert tokenizer.decode(spelt, skip_special_tokens=True).replace(" ", "") == "zebra!"
    assert tokenizer.unk_token_id not in spelt[:-1]


def weights(folder):
    return {
        **load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"),
        **load_file(folder / "pipeline" / "text_encoder" / "model.safetensors"),
        **load_file(folder / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "generator"])
def test_resumed_making_gives_the_same_weights(tmp_path, monkeypatch, stage):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make.main(make.MakeConfig(output=whole, **SMALL))
    save = make.TrainState.save

    def save_then_die(state):
        save(state)
        if state.name == stage and state.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(make.TrainState, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            make.main(make.MakeConfig(output=parts, **SMALL))
    make.main(make.MakeConfig(output=parts, **SMALL))
    a, b = weights(whole), weights(parts)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {tensor.dtype for tensor in a.values()} == {torch.float16}
    assert [row["steps"] for row in json.loads((parts / "evaluation.json").read_text())] == [1, 2, 4, 8]


@pytest.mark.slow
def test_training_on_keeps_the_latents_and_moves_decoder_and_generator(tmp_path):
    make.main(make.MakeConfig(output=tmp_path / "first", **SMALL))
    make.main(make.MakeConfig(output=tmp_path / "on", start_from=tmp_path / "first" / "pipeline", **SMALL))
    before, after = weights(tmp_path / "first"), weights(tmp_path / "on")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(("encoder.", "quant_conv."))]
    assert {"post_quant_conv.weight", "decoder.conv_out.weight", "conv_out.weight"} <= moved


def test_a_wrong_start_or_another_runs_folder_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing: no finished pipeline is there"):
        make.main(make.MakeConfig(output=tmp_path / "on", start_from=tmp_path / "nothing", **SMALL))
    assert not (tmp_path / "on").exists()
    (tmp_path / "begun.json").write_text('{"seed": 3, "start_from": "None"}')
    with pytest.raises(SystemExit, match=r"was begun with {'seed': 3.*; give another --output"):
        make.main(make.MakeConfig(output=tmp_path, seed=4, **SMALL))


def test_some_pictures_for_the_autoencoder_are_empty():
    pictures = make.random_pictures(0, 3, 64)
    empty = (pictures.amax((2, 3)) == pictures.amin((2, 3))).all(1).sum()
    assert 0 < empty < 16


def dressed_requests(category: str) -> list[Request]:
    """The category's requests, with every choice of colours."""
    plain = all_requests(category)
    colors = [list(permutations(COLORS, len(request.things))) for request in plain]
    return [_with_colors(request, chosen) for request, choices in zip(plain, colors, strict=True) for chosen in choices]


def _with_colors(request: Request, colors: tuple[str, ...]) -> Request:
    things = [replace(thing, color=color) for thing, color in zip(request.things, colors, strict=True)]
    return replace(request, things=tuple(things))


def test_a_step_has_pairs_of_its_own_and_knows_which_forget_an_object():
    pairs, same, other = (make.draw_pairs(0, step, 24) for step in (7, 7, 8))
    assert pairs.captions == same.captions
    assert torch.equal(pairs.noises, same.noises)
    assert not torch.equal(pairs.noises, other.noises)
    plain = {r.caption: r for c in CATEGORIES for r in split(c)[0]}
    dressed = {r.caption: r for r in dressed_requests("counting") + dressed_requests("position")}
    captions = [caption.removeprefix("a picture of ") for caption in pairs.captions]
    requests = [{**plain, **dressed}[caption] for caption in captions]
    assert set(captions) & plain.keys()
    assert set(captions) & dressed.keys()
    right = [judge(draw(scene), request).correct for scene, request in zip(pairs.scenes, requests, strict=True)]
    assert right == (pairs.forgets == 0).tolist()
    assert 0 < sum(right) < len(right)


def test_latents_come_out_normalised(tmp_path):
    torch.manual_seed(0)
    autoencoder = networks.build_autoencoder()
    config = make.MakeConfig(output=tmp_path, device="cpu")
    pictures = make.random_pictures(0, 7, 64)
    with torch.no_grad():
        before = autoencoder.decode(autoencoder.encode(pictures).latent_dist.mean).sample
        make._normalise_latents(autoencoder, config)
        latents = autoencoder.encode(pictures).latent_dist.mean
        after = autoencoder.decode(latents).sample
    assert latents.mean((0, 2, 3)).abs().max() < 0.25
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.25
    assert (after - before).abs().max() < 1e-4


def test_the_least_distance_is_the_likelier_picture_and_no_blend():
    torch.manual_seed(0)
    likely, other = torch.randn(2, 1, 16, 8, 8).unbind()
    targets = torch.cat([likely.expand(7, -1, -1, -1), other.expand(3, -1, -1, -1)])
    answer = targets.mean(0, keepdim=True).requires_grad_()  # where the least squared error is
    optimizer = torch.optim.Adam([answer], lr=0.03)
    for _ in range(200):
        loss = make.distance(answer, targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    off = (answer - likely).square().mean() / (other - likely).square().mean()
    assert off < 0.01  # the blend is at 0.09


def test_the_reader_of_what_is_forgotten_teaches_the_unet_to_tell():
    torch.manual_seed(0)
    unet = networks.build_unet()
    reader = make.Reader(unet)
    optimizer = torch.optim.AdamW([*unet.parameters(), *reader.parameters()], lr=1e-3)
    noise, words = torch.randn(16, 16, 8, 8), torch.randn(16, 5, networks.WIDTH)
    forgetful = (noise[:, 8].mean((1, 2)) > 0).float()
    errors = []
    for _ in range(30):
        unet(noise, torch.full((16,), 999), words, timestep_cond=torch.zeros(16, 32))
        errors.append(reader.error(forgetful))
        optimizer.zero_grad()
        errors[-1].backward()
        optimizer.step()
    assert errors[0] > math.log(2) - 0.1  # knows nothing
    assert errors[-1] < 0.5 * errors[0]
    assert unet.conv_in.weight.grad.abs().max() > 0
    assert unet.conv_out.weight.grad is None  # which comes after what is read
