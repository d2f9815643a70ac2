"""What `hypernoise train` reports of a validation reward, which it measures and does not train for."""

import json

import pytest

from hypernoise.cli import main


@pytest.fixture
def tiny(sd_pipeline, tmp_path):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue rings\na green cross\n")
    return ["--generator", str(tmp_path / "tiny"), "--prompts", str(tmp_path / "prompts.txt")]


def test_train_reports_the_trained_reward_beside_the_validation_reward(tiny, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"generator: {tiny[1]}\nprompts: {tiny[3]}\nrewards: {{redness: 20}}\nvalidation_reward: brightness\nvalidation_steps: 2\n"
    )
    out = ["--output-dir", str(tmp_path / "run"), "--train-batch-size", "2", "--rank", "2", "--device", "cpu"]
    assert main(["train", str(recipe), "--max-train-steps", "6", *out]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [reading["step"] for reading in summary["validation"]] == [2, 4, 6]
    assert summary["stopped_early"] is False
    last = [reading["validation_reward"] for reading in summary["validation"]]
    assert summary["results"][0]["validation_reward"] == pytest.approx(sum(last) / 3)
    printed = capsys.readouterr().out.splitlines()
    assert "trained reward" in printed[0]
    assert "validation reward" in printed[0]
    assert [line.split()[0] for line in printed[1:4]] == ["2", "4", "6"]
    assert float(printed[1].split()[2]) == pytest.approx(last[0], abs=1e-4)
    assert "curves.png" in printed[4]
    assert (tmp_path / "run" / "curves.png").exists()
