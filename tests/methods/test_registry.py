import pytest

from hypernoise.adapters import save_adapter
from hypernoise.errors import InputError
from hypernoise.methods.base import Method
from hypernoise.methods.finetune import LoRATune
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.methods.registry import EXAMPLES, make_methods
from hypernoise.noise.lora import LoRANoise


def rewrite(prompt, number):
    return []


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_made_under_its_own_name(name):
    ((method,),) = make_methods([name], adapters=["a"], finetuned=["b"], rewriter=rewrite)
    assert isinstance(method, Method)
    assert method.name == name


def test_short_names_take_the_usual_numbers():
    names = [m.name for (m,) in make_methods(["reno", "prompt-search"], rewriter=rewrite)]
    assert names == ["reno-50", "prompt-search-8"]


def test_each_training_run_has_its_own_name():
    made = make_methods(["hypernoise", "finetune"], adapters=["a", "b"], finetuned=["c"])
    assert [[m.name for m in runs] for runs in made] == [["hypernoise-1", "hypernoise-2"], ["finetune"]]


def test_strengths_are_methods_of_their_own(generator, tmp_path):
    made = make_methods(["hypernoise@0.5", "hypernoise@.25", "hypernoise"], adapters=["a", "b"])
    assert [(m.name, m.strength) for runs in made for m in runs if isinstance(m, HyperNoise)] == [
        ("hypernoise@0.5-1", 0.5), ("hypernoise@0.5-2", 0.5), ("hypernoise@.25-1", 0.25), ("hypernoise@.25-2", 0.25),
        ("hypernoise-1", 1.0), ("hypernoise-2", 1.0),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"strength must be a number from 0 to 1\.5, not 2"):
        make_methods(["hypernoise@2"], adapters=["a"])


def test_settings_follow_the_weights(generator, tmp_path):
    folders = []
    for kind in (LoRANoise, LoRATune):
        for seed in (0, 1):
            folder = tmp_path / f"{kind.__name__}{seed}"
            save_adapter(kind(generator, rank=2, seed=seed), folder)
            folders.append(str(folder))
    made = make_methods(["hypernoise", "finetune"], adapters=folders[:2], finetuned=folders[2:])
    assert len({str(method.settings()) for runs in made for method in runs}) == 4
    again = make_methods(["hypernoise", "finetune"], adapters=folders[:2], finetuned=folders[2:])
    assert [[m.settings() for m in runs] for runs in made] == [[m.settings() for m in runs] for runs in again]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best-of", "unknown method 'best-of'; did you mean 'best-of-8'"),
        ("renoo-50", "unknown method 'renoo-50'; did you mean 'reno-50'"),
        ("hypernoise", "method 'hypernoise' needs --adapter DIR"),
        ("finetune", "method 'finetune' needs --finetuned DIR"),
        ("prompt-search-4", "prompt-search needs a rewriter"),
        ("best-of-0", "n must be at least 1"),
    ],
)
def test_mistakes_are_named(name, message):
    with pytest.raises(InputError, match=message):
        make_methods([name])
