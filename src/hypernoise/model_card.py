"""`push_to_hub`: an adapter on the Hub, with a model card of measured results."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import OfflineModeIsEnabled
from jinja2 import Template

from hypernoise.adapters import ABOUT, CONFIG, WEIGHTS, adapter_folder, read_about, read_weights
from hypernoise.errors import InputError, first_line
from hypernoise.evaluation.page import result_tables
from hypernoise.evaluation.result_rows import empty_row
from hypernoise.files import kept_json
from hypernoise.generators.hub import HUB_ID, UNREACHABLE
from hypernoise.generators.presets import PRESETS

PICTURE = "before_after.png"


def push_to_hub(adapter: str | Path, repository: str, *, measured: str | Path | None = None) -> str:
    """Uploads an adapter directory with a model card, and returns the repository's URL.

    Args:
        adapter: a directory that `save_adapter` wrote, or a name `attach` takes; only its three files are uploaded.
        repository: "owner/name"; created if missing.
        measured: the output of `hypernoise evaluate`, `quickstart` or `train`, for the card's result rows and pictures;
            without it, the card says that nothing was measured.

    The licence is taken from the base's model card.

    Raises:
        InputError: no adapter there, no results in `measured`, an invalid repository name, no login, or a Hub that
            refuses or cannot be reached.
    """
    check_login(repository)
    folder, api = adapter_folder(adapter), HfApi()
    read_weights(folder)
    if not (folder / ABOUT).is_file():
        raise InputError(f"{folder} has no {ABOUT}: load it on its base and save it (load_adapter, save_adapter) first")
    card = model_card(folder, repository, measured=measured)
    picture = _picture(measured)
    with tempfile.TemporaryDirectory() as temporary:
        for name in (WEIGHTS, CONFIG, ABOUT):
            shutil.copy(folder / name, temporary)
        if picture is not None:
            shutil.copy(picture, Path(temporary) / PICTURE)
        try:
            data: Any = card.data
            if data.base_model is not None:
                base = api.model_info(data.base_model).card_data
                data.license = base.license if base is not None else None
            card.validate()
            card.save(Path(temporary) / "README.md")
            address = api.create_repo(repository, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=temporary, commit_message="Noise network and its card")
        except (*UNREACHABLE, OfflineModeIsEnabled, ValueError) as error:
            raise InputError(
                f"{repository} was not pushed: {first_line(error)}; the adapter is in {folder}, and "
                f"hypernoise.push_to_hub({str(folder)!r}, {repository!r}) tries again"
            ) from error
    return str(address)


def check_login(repository: str) -> None:
    """Raises InputError for an invalid repository name, or without a login to the Hub."""
    if "@" in repository or not HUB_ID.fullmatch(repository):
        raise InputError(f"a repository on the Hub is owner/name, not {repository!r}")
    if get_token() is None:
        raise InputError(f"pushing to {repository} needs a login: hf auth login, or HF_TOKEN in the environment")


def model_card(folder: Path, repository: str, *, measured: str | Path | None = None) -> ModelCard:
    about = read_about(folder)
    base, training = about["base"] or {}, about.get("training", {})
    preset = PRESETS.get(base.get("name", ""))
    summary = _summary(measured)
    rows = [{**empty_row(row["method"]), **row} for row in summary.get("results", [])]
    data = ModelCardData(
        base_model=preset.repository if preset else None,
        license="apache-2.0" if preset and preset.packaged else None,
        library_name="hypernoise",
        pipeline_tag="text-to-image",
        tags=["noise-hypernetwork", f"{about['kind']}-noise-network"],
        model_name=repository.partition("/")[2],
    )
    facts = {
        "base": base.get("name"),
        "noise network": ", ".join([about["kind"], *(f"{name} {value}" for name, value in about["settings"].items())]),
        "rewards": ", ".join(f"{weight:g} × {name}" for name, weight in training.get("rewards", {}).items()),
        "α (kl_weight)": training.get("kl_weight"),
        "updates": training.get("steps"),
    }
    source = files("hypernoise").joinpath("model_card.md").read_text()
    text = Template(source, trim_blocks=True, lstrip_blocks=True).render(
        card_data=data.to_yaml(),
        name=data.model_name,
        base=f"`{base.get('name')}`",
        code=_code(base, repository),
        facts={name: value for name, value in facts.items() if value not in (None, "")},
        picture=PICTURE if _picture(measured) else None,
        tables=[table for table in result_tables(rows) if table.shown] if rows else [],
        command=summary.get("command"),
        version=summary.get("version"),
    )
    return ModelCard(text)


def _code(base: Mapping[str, Any], repository: str) -> str:
    """The code that uses it: on the published pipeline, or on the result of `load_generator`."""
    if "denoiser" not in base:
        return f'import hypernoise as hn\n\nnetwork = hn.load_adapter(generator, "{repository}")'
    name = base["name"]
    preset = PRESETS.get(name)
    load, pipeline = "", f'hn.load_generator("{name}").pipeline'
    if preset and preset.repository and not (preset.lora or preset.parts or preset.scheduler):
        load = "from diffusers import DiffusionPipeline\n"
        pipeline = f'DiffusionPipeline.from_pretrained("{preset.repository}")'
    return f'import hypernoise as hn\n{load}\npipe = hn.attach({pipeline}, "{repository}")'


def _summary(measured: str | Path | None) -> dict[str, Any]:
    if measured is None:
        return {}
    found = kept_json(Path(measured) / "summary.json") or {}
    rows = found.get("results") if isinstance(found.get("arguments", {}), dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "method" in row for row in rows):
        raise InputError(f"{measured} holds no results of hypernoise evaluate, quickstart or train (summary.json)")
    return found


def _picture(measured: str | Path | None) -> Path | None:
    """Before and after: the picture of evaluate and quickstart, or a training run's last validation prompts."""
    if measured is None:
        return None
    found = [*sorted(Path(measured).glob("samples/step-*.png")), *Path(measured).glob(PICTURE)]
    return found[-1] if found else None
