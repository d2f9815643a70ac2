"""`hypernoise diagnose --adapter DIR`: what a noise network does to the noise, on one page."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from hypernoise.commands.common import WithGenerator
from hypernoise.errors import InputError
from hypernoise.settings import AtOnce, Count, Seed


@dataclass(frozen=True)
class Diagnose(WithGenerator):
    """Check if the KL term can be trusted, how far the noise moved, and whether the residual depends on the prompt.

    Prints findings with advice, and writes summary.json to --output-dir.
    """

    ESSENTIAL: ClassVar = ("adapter", "prompts", "rewards", "noises", "output_dir")
    adapter: Path | None = None
    """An adapter directory."""
    prompts: str = "scenes"
    """A text file with a prompt per line, or "scenes" for the embedded world's training captions."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Rewards for the prompt-swap control; default: the ones the adapter was trained on."""
    noises: AtOnce = 32
    """Number of noises; more make the standard errors smaller."""
    num_inference_steps: Count = 1
    """Denoiser calls per picture."""
    batch_size: AtOnce = 16
    """Noises in memory at once."""
    seed: Seed = 0
    output_dir: Path = Path("runs/diagnose")

    def run(self) -> int:
        if self.adapter is None:
            raise InputError("name an adapter: hypernoise diagnose --adapter runs/quickstart/adapter")
        from hypernoise.adapters import adapter_folder, load_adapter, read_about
        from hypernoise.diagnostics.diagnosis import diagnose, findings
        from hypernoise.evaluation.summary import write_summary
        from hypernoise.files import output_folder
        from hypernoise.prompts import read_prompts
        from hypernoise.rewards.ensemble import WeightedSum

        rewards = self.rewards or (read_about(adapter_folder(self.adapter)).get("training") or {}).get("rewards")
        if not isinstance(rewards, dict) or not rewards:
            raise InputError(f"{self.adapter} does not record its rewards; name them, such as --rewards redness=250")
        reward = WeightedSum(rewards)
        prompts = read_prompts(self.prompts)
        generator = self.load()
        generator.check_prompts(prompts)
        network = load_adapter(generator, self.adapter)
        output_folder(self.output_dir)
        self.log_precision(generator.device)
        work = {"noises": self.noises, "seed": self.seed, "batch": self.batch_size}
        found = diagnose(generator, network, reward, prompts, num_inference_steps=self.num_inference_steps, **work)
        verdict = findings(found)
        for one in verdict:
            print(f"{'ok ' if one.good else '!! '}{one.name:<11}{one.text}")
            if one.advice:
                print(f"{'':<14}to change it: {one.advice}")
        rows, measured = [vars(one) for one in verdict], {**asdict(found), "lipschitz": found.lipschitz}
        write_summary(self.output_dir, "diagnose", self, generator.device, rows, measured=measured)
        return 0
