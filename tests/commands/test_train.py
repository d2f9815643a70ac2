"""`hypernoise train`: its help, its flags, and what it reports."""

import json
import re
import time

import pytest

from hypernoise.cli import main
from hypernoise.commands.flags import flags_of, parse
from hypernoise.commands.generate import Generate
from hypernoise.commands.train import Train
from hypernoise.errors import InputError


def test_every_flag_is_in_one_section_of_the_help(capsys):
    began = time.process_time()
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert time.process_time() - began < 1
    page = capsys.readouterr().out
    for name, _, _ in flags_of(Train):
        flag = "" if name == Train.POSITIONAL else "--" + name.replace("_", "-")
        assert len(re.findall(rf"^  (?:--.*, )?{flag or name.upper()}(?:,? |$)", page, re.MULTILINE)) == 1, name
    assert set(Train.ESSENTIAL) <= {name for name, _, _ in flags_of(Train)}
    assert page.index("essential:") < page.index("--learning-rate") < page.index("--optimizer")
    assert "Samples per update, over all processes and accumulation steps. (default: 16)" in page
    assert not any("─" in line for line in page.splitlines())


def test_dashes_underscores_and_the_ecosystems_short_names_are_the_same():
    for flags in (["--lora.rank", "3", "--lora.alpha", "6"], ["--rank", "3", "--lora_alpha", "6"]):
        asked = parse(Train, [*flags, "--max_train_steps", "7", "--gradient-checkpointing"])
        assert (asked.lora.rank, asked.lora.alpha, asked.max_train_steps) == (3, 6.0, 7)
        assert asked.memory.gradient_checkpointing


def test_flags_override_the_recipe_and_leave_its_groups_rest(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("lora: {rank: 4, alpha: 8}\nmemory: {decode_slice: 1}\nnum_inference_steps: [1, 2]\n")
    asked = parse(Train, [str(file), "--lora.rank", "2", "--memory.text-encoders", "offload"])
    assert (asked.lora.rank, asked.lora.alpha) == (2, 8.0)
    assert (asked.memory.decode_slice, asked.memory.text_encoders) == (1, "offload")
    assert asked.num_inference_steps == (1, 2)
    assert parse(Train, [str(file), "--num-inference-steps", "4"]).num_inference_steps == 4
    assert parse(Train, [str(file), "--reward-dtype", "bfloat16"]).reward_settings().dtype == "bfloat16"


def test_only_training_is_fitted_to_a_memory():
    assert parse(Train, ["--fit", "24GB"]).memory.fit == "24GB"
    for flag in ("--fit", "--memory.fit"):
        with pytest.raises(InputError, match=f"unknown flag '{flag}'"):
            parse(Generate, ["a ring", flag, "24GB"])


def test_train_reports_the_trained_against_the_validation_reward(sd_pipeline, tmp_path, capsys):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue rings\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"generator: {tmp_path / 'tiny'}\nprompts: {tmp_path / 'prompts.txt'}\nrewards: {{redness: 20}}\n"
        "validation_reward: brightness\nvalidation_steps: 2\n"
    )
    out = ["--output-dir", str(tmp_path / "run"), "--train-batch-size", "2", "--rank", "2", "--device", "cpu"]
    assert main(["train", str(recipe), "--max-train-steps", "6", *out]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_early"] is False
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [row["validation_reward"] for row in rows if row["step"] in (2, 4, 6)]
    assert summary["results"][0]["validation_reward"] == pytest.approx(sum(last) / 3)
    assert "curves.png" in capsys.readouterr().out.splitlines()[0]
    assert (tmp_path / "run" / "curves.png").exists()
