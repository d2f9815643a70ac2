import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.errors import InputError
from hypernoise.evaluation import records
from hypernoise.evaluation.engine import EVALUATION_STEP, compare
from hypernoise.evaluation.records import Judgement
from hypernoise.evaluation.result_rows import result_row
from hypernoise.generators.module import ModuleGenerator
from hypernoise.methods.best_of_n import BestOfN, Plain
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.methods.reno import ReNO
from hypernoise.noise.draws import keyed_noise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.rewards.pixel import blueness, redness

PROMPTS = ["a", "b", "c"]
FIELDS = {  # the design's
    "method", "inference_steps", "score", "score_ci95", "categories", "reward", "validation_reward", "kl", "artefacts",
    "diversity", "denoiser_forwards", "denoiser_backwards", "decodes", "reward_calls", "seconds_per_image",
}  # fmt: skip


def build(seed=0):
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (3, 4, 4)))
    return ModuleGenerator(module, noise_shape=(32,))


def judge(picture, prompt):
    """Right if it is redder than blue; the third prompt never is."""
    return Judgement(
        bool(picture[..., 0].mean() > picture[..., 2].mean()) and prompt != "c", float(picture[..., 1].mean())
    )


class Counting:
    """A method that counts its calls."""

    def __init__(self, method):
        self.method, self.name, self.settings, self.asked = method, method.name, method.settings, 0

    def generate(self, problem, prompts, noise):
        self.asked += 1
        return self.method.generate(problem, prompts, noise)


def run(methods, **settings):
    return compare(build(), methods, PROMPTS, redness, **{"num_images_per_prompt": 2, "batch_size": 4, **settings})


def test_rows_are_the_means_of_what_was_drawn():
    generator = build()
    found = run([Plain(), BestOfN(4)], validation_reward=blueness, judge=judge, categories=["x", "x", "y"])
    plain, best = found.rows
    assert set(plain) >= FIELDS
    noise = keyed_noise((32,), seed=0, step=EVALUATION_STEP, samples=range(6))
    pixels = generator.sample(noise, generator.encode(PROMPTS))
    assert plain["reward"] == pytest.approx(redness(pixels, []).mean().item(), abs=1e-6)
    assert plain["validation_reward"] == pytest.approx(blueness(pixels, []).mean().item(), abs=1e-6)
    right = (pixels[:, 0].mean((1, 2)) > pixels[:, 2].mean((1, 2))).float().view(3, 2).mean(1)
    assert plain["categories"] == {"x": pytest.approx(right[:2].mean().item()), "y": 0.0}
    assert plain["score"] == pytest.approx(right[:2].mean().item() / 2)
    assert plain["artefacts"] == pytest.approx(pixels[:, 1].mean().item(), abs=1e-6)
    pairs = pixels.view(3, 2, -1)
    assert plain["diversity"] == pytest.approx(
        (pairs[:, 0] - pairs[:, 1]).square().mean(1).sqrt().mean().item(), abs=2e-3
    )  # read back from 8 bits
    assert best["reward"] > plain["reward"]
    assert best["reward_gain"] == pytest.approx(best["reward"] - plain["reward"])
    low, high = best["reward_gain_ci95"]
    assert 0 < low <= best["reward_gain"] <= high  # best-of-n lowers no prompt's reward
    assert best["gain"] == pytest.approx(best["score"] - plain["score"])
    assert (plain["gain"], plain["reward_gain_ci95"]) == (None, None)
    assert [row["denoiser_forwards"] for row in found.rows] == [1, 4]
    assert [row["reward_calls"] for row in found.rows] == [0, 4]
    assert found.records[1, "plain"].files == []
    assert "best-of-4" in str(found)


def test_without_a_judge_or_plain_nothing_is_made_up():
    (row,) = run([BestOfN(2)]).rows
    assert (row["score"], row["score_ci95"], row["categories"], row["artefacts"]) == (None, None, {}, None)
    assert (row["gain"], row["reward_gain"], row["validation_reward"]) == (None, None, None)


def test_another_method_does_not_redo_the_others(tmp_path):
    first, second = Counting(Plain()), Counting(BestOfN(2))
    before = run([first], output=tmp_path).rows
    assert first.asked == 2
    after = run([first, second], output=tmp_path).rows
    assert (first.asked, second.asked) == (2, 2)
    assert after[0] == before[0]
    assert run([second, first], output=tmp_path).rows == [after[1], after[0]]
    assert second.asked == 2


def test_settings_that_change_the_numbers_have_their_own_folder(tmp_path):
    method = Counting(Plain())
    changes = [("seed", 1), ("num_images_per_prompt", 1), ("num_inference_steps", 2), ("batch_size", 3)]
    for settings in ({}, *({name: value} for name, value in [*changes, ("validation_reward", blueness)])):
        run([method], output=tmp_path, **settings)
    alike = {"num_images_per_prompt": 2, "batch_size": 4, "output": tmp_path}
    compare(build(seed=1), [method], PROMPTS, redness, **alike)  # other weights
    compare(build(), [method], PROMPTS, blueness, **alike)
    compare(build(), [method], PROMPTS[:2], redness, **alike)
    assert len(list((tmp_path / "methods").iterdir())) == 9
    done = method.asked
    run([method], output=tmp_path)
    assert method.asked == done


def test_a_stopped_run_resumes_to_the_same_rows(tmp_path):
    class Stops(Counting):
        def generate(self, problem, prompts, noise):
            if self.asked == 1:
                raise KeyboardInterrupt
            return super().generate(problem, prompts, noise)

    with pytest.raises(KeyboardInterrupt):
        run([Stops(ReNO(3))], output=tmp_path)
    rest = Counting(ReNO(3))
    (resumed,) = run([rest], output=tmp_path).rows
    assert rest.asked == 1
    (whole,) = run([ReNO(3)]).rows
    assert {**resumed, "seconds_per_image": 0} == {**whole, "seconds_per_image": 0}


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:60]), lambda file: file.unlink()])
def test_a_damaged_picture_costs_its_batch(tmp_path, damage):
    first = run([Plain(), BestOfN(2)], output=tmp_path)
    file = first.records[1, "plain"].files[5]  # of the second batch
    drawn = file.read_bytes()
    damage(file)
    left = run([Plain(), BestOfN(2)], output=tmp_path, shard=(0, 2))  # the batch is another shard's
    assert left.missing == 1
    again = Counting(Plain())
    second = run([again, BestOfN(2)], output=tmp_path)
    assert again.asked == 1
    assert file.read_bytes() == drawn
    assert [row["reward"] for row in second.rows] == [row["reward"] for row in first.rows]


def test_shards_share_the_work(tmp_path):
    method = Counting(BestOfN(3))
    first = run([method], output=tmp_path, shard=(0, 2))
    assert (first.rows, first.missing, method.asked) == ([], 1, 1)
    (shared,) = run([method], output=tmp_path, shard=(1, 2)).rows
    assert method.asked == 2
    (whole,) = run([BestOfN(3)]).rows
    assert {**shared, "seconds_per_image": 0} == {**whole, "seconds_per_image": 0}


def test_pictures_are_kept_as_drawn(tmp_path):
    found = run([Plain()], output=tmp_path)
    files = found.records[1, "plain"].files
    assert [file.name for file in files] == [
        "0000-0.png",
        "0000-1.png",
        "0001-0.png",
        "0001-1.png",
        "0002-0.png",
        "0002-1.png",
    ]
    generator = build()
    noise = keyed_noise((32,), seed=0, step=EVALUATION_STEP, samples=[5])
    expected = generator.sample(noise, generator.encode(["c"]))[0].detach().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(Image.open(files[5]), float) / 255 - expected).max() < 0.003
    row = json.loads((files[0].parent / "batch-00001.json").read_text())["pictures"][1]
    assert (row["file"], row["prompt"]) == ("0002-1.png", "c")


def test_several_steps_are_paired_with_their_own_plain():
    rows = run([Plain(), BestOfN(2)], num_inference_steps=[1, 3]).rows
    assert [(row["inference_steps"], row["method"]) for row in rows] == [
        (1, "plain"), (1, "best-of-2"), (3, "plain"), (3, "best-of-2")
    ]  # fmt: skip
    assert rows[3]["reward_gain"] == pytest.approx(rows[3]["reward"] - rows[2]["reward"])


def test_kl_is_the_networks():
    network = ResidualNoise((32,), depth=0)
    with torch.no_grad():
        network.network[-1].bias.fill_(0.5)
    (row,) = run([HyperNoise(network)]).rows
    assert row["kl"] == pytest.approx(0.5 * 32 * 0.25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": []}, "compare needs prompts and methods, not 3 and 0"),
        ({"methods": Plain()}, "methods is a Plain; pass a list, such as"),
        ({"methods": [Plain(), Plain()]}, "two methods are called 'plain'"),
        ({"methods": [Plain()], "num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, not 0"),
        ({"methods": [Plain()], "num_images_per_prompt": None}, "num_images_per_prompt must be a whole number"),
        ({"methods": ["plain"]}, r"a method is a str; pass an instance, such as Plain\(\)"),
        ({"methods": [Plain()], "shard": (2, 2)}, "there is no shard 2/2"),
        ({"methods": [Plain()], "categories": ["x"]}, "1 categories do not fit 3 prompts"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        run(**settings)


def test_pooled_runs_are_their_mean_and_keep_each_run():
    networks = []
    for shift in (0.2, 0.6):
        network = ResidualNoise((32,), depth=0)
        with torch.no_grad():
            network.network[-1].bias.fill_(shift)
        networks.append(HyperNoise(network, name=f"run-{shift}"))
    found = run([Plain(), *networks], judge=judge)
    plain, *runs = found.records.values()
    row = result_row("hypernoise", 1, runs, plain, np.array(["all"] * 3))
    singles = found.rows[1:]
    assert row["kl"] == pytest.approx((singles[0]["kl"] + singles[1]["kl"]) / 2)
    assert row["reward_gain"] == pytest.approx(np.mean([one["reward"] for one in singles]) - found.rows[0]["reward"])
    assert row["reward_gain_ci95"][0] <= row["reward_gain"] <= row["reward_gain_ci95"][1]
    assert row["score"] == pytest.approx(np.mean([one["score"] for one in singles]))
    assert [one["kl"] for one in row["runs"]] == [one["kl"] for one in singles]
    assert row["images"] == 12


def test_a_judges_own_categories_notes_and_details_are_kept(tmp_path):
    def asking(picture, prompt):
        return Judgement(0.25, note=f"not {prompt}", parts={"shape": [1.0, 0.0], "color": [0.5]}, details=[prompt])

    found = run([Plain()], judge=asking, output=tmp_path)
    (row,) = found.rows
    assert (row["score"], row["categories"], row["artefacts"]) == (0.25, {"shape": 0.5, "color": 0.5}, None)
    picture = found.records[1, "plain"].pictures[2]
    assert (picture["note"], picture["details"]) == ("not b", ["b"])


def test_without_a_reward_nothing_is_rewarded_and_no_method_may_search():
    (row,) = compare(build(), [Plain()], PROMPTS, None, num_images_per_prompt=2).rows
    assert (row["reward"], row["reward_gain"], row["kl"]) == (None, None, 0.0)
    with pytest.raises(InputError, match="needs a reward to search by"):
        compare(build(), [BestOfN(2)], PROMPTS, None)


def test_the_mean_distance_reads_each_picture_once(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    values = draw.integers(0, 256, (7, 150, 160, 3), np.uint8)  # more than are compared at once
    values[1] = values[0]
    values[2] = values[0]
    values[2, 0, 0, 0] ^= 1  # the least difference there is
    files = [tmp_path / f"{number}.png" for number in range(len(values))]
    for file, own in zip(files, values, strict=True):
        Image.fromarray(own).save(file)
    opened, real = [], records.opened
    monkeypatch.setattr(records, "opened", lambda file: opened.append(file) or real(file))
    pairs = itertools.combinations(values.astype(float) / 255, 2)
    expected = np.mean([np.sqrt(np.square(a - b).mean()) for a, b in pairs])
    assert records.mean_distance(files) == pytest.approx(expected, rel=1e-12)
    assert sorted(opened) == files
    assert records.mean_distance(files[::2][:2]) == pytest.approx(1 / 255 / values[0].size ** 0.5)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda pixels, prompts: pixels.mean((1, 2, 3))[:, None], r"the reward returned shape \[12, 1\]"),
        (lambda pixels, prompts: [1.0] * len(prompts), "the reward returned a list"),
        (
            lambda pixels, prompts: pixels.mean((1, 2, 3)).to_sparse(),
            "returned scores that are torch.sparse_coo",
        ),
        (lambda pixels, prompts: pixels.mul_(2).mean((1, 2, 3)), "changes the pixels in place"),
        (lambda pixels, prompts: {}["a"], r"the reward raised KeyError for 'a': 'a'"),
        ({"redness": 1.0}, "the reward is a dict"),
    ],
)
def test_what_is_no_reward_is_one_line(reward, message):
    with pytest.raises(InputError, match=message):
        compare(build(), [Plain()], PROMPTS, reward)


def test_a_reward_may_count_and_change_its_list_of_prompts():
    def bright(pixels, prompts):
        prompts.clear()
        return pixels.mean((1, 2, 3)) > 0

    (row,) = compare(build(), [Plain()], PROMPTS, bright, num_images_per_prompt=2).rows
    assert row["reward"] == 1


def test_prompts_that_are_one_text_are_refused():
    with pytest.raises(InputError, match="prompts is a single text"):
        compare(build(), [Plain()], "abc", redness)
