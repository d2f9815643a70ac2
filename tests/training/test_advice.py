import math

from hypernoise.training.advice import advice
from hypernoise.training.config import TrainConfig
from tests.training.test_resume import quick


def rows(loss, *, kl=2.0, norm=0.5, count=400):
    wobble = [0.05 * (-1) ** step for step in range(count)]
    values = [loss(step / count) + wobble[step] for step in range(count)]
    return [
        {"step": step + 1, "loss": value, "kl": kl, "gradient_norm": norm * (1 + 0.1 * wobble[step])}
        for step, value in enumerate(values)
    ]


def falling(share):
    return -3 * share


def settled(share):
    return -math.tanh(8 * share)


def said(loss, *, dimensions=1024, exact=False, settings=None, **changes):
    return advice(rows(loss, **changes), TrainConfig(**settings or {}), dimensions, exact=exact)


def test_an_objective_that_still_falls_asks_for_more():
    assert "after 400 updates the objective was still improving (-2.6" in said(falling)
    assert "+0.75 better than a quarter before); 0% of the last updates were clipped: raise max_train_steps" in said(
        falling
    )
    assert "learning_rate (and max_grad_norm);" in said(falling, norm=2.0, settings={"optimizer": "sgd"})
    assert "100% of the last updates were clipped" in said(falling, norm=2.0)
    assert "no longer improving" in said(lambda share: 0.3 * share)  # it rises


def test_an_objective_that_has_settled_asks_for_a_rate_that_falls():
    assert "no longer improving" in said(settled)
    assert "lr_scheduler: cosine" in said(settled)
    assert "a longer run (max_train_steps) shows" in said(settled, settings={"lr_scheduler": "cosine"})


def test_which_way_the_kl_weight_points():
    assert "less than best-of-8 spends (1.20): a lower kl_weight" in said(falling, kl=0.3)
    assert "a lower kl_weight trades more of it for reward" in said(falling, kl=5.0)
    assert "raise kl_weight if the pictures suffer" in said(falling, kl=200.0)
    assert "raise kl_weight" in said(falling, kl=9.0, dimensions=16, settings={"kl_limit": 0})


def test_a_kl_that_is_only_approximated_is_named_where_the_exact_one_can_be_counted():
    exact = "in 100 dimensions kl_term: exact counts all of it"
    assert exact in said(falling, dimensions=100)
    assert exact not in said(falling, dimensions=100, exact=True)
    assert "kl_term" not in said(falling, dimensions=257)


def test_too_short_a_run_says_nothing_and_skipped_steps_are_left_out():
    assert said(falling, count=39) == ""
    skipped = [{"step": 1}, {"step": 2, "kl": 1.0, "gradient_norm": 1.0, "skipped": 1}]
    assert advice([*skipped, *rows(falling)], TrainConfig(), 1024, exact=False) == said(falling)


def test_a_run_ends_with_its_advice_also_a_resumed_one(tmp_path, capsys):
    _, whole = quick(tmp_path / "whole", max_train_steps=44)
    assert whole.advice.startswith("after 44 updates")
    assert len(whole.advice.splitlines()) == 1
    assert capsys.readouterr().err.splitlines()[-1] == whole.advice
    quick(tmp_path / "halves", max_train_steps=30)
    _, resumed = quick(tmp_path / "halves", max_train_steps=44)
    assert resumed.advice == whole.advice
    assert "kl_term: exact" in whole.advice
    assert "kl_term: exact" not in quick(None, max_train_steps=44, kl_term="exact")[1].advice
