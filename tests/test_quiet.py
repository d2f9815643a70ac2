"""Messages of transformers and diffusers that no user can act on are silenced; all others are shown."""

import io
import logging
import os
import subprocess
import sys
from importlib.resources import files

import pytest

from hypernoise import quiet

TRANSFORMERS = "transformers.utils.import_utils"
WEIGHTS = files("hypernoise").joinpath("scenes/weights")
CODE = f"""
import hypernoise as hn, torch
hn.load_generator("scenes", device="cpu")
hn.load_reward("scenes")(torch.zeros(1, 3, 64, 64), ["a red circle"])

import diffusers, transformers  # whose bars, of the user's own loading, are the user's
diffusers.utils.logging.disable_progress_bar(), transformers.utils.logging.disable_progress_bar()
pipe = diffusers.DiffusionPipeline.from_pretrained({str(WEIGHTS.joinpath("generator"))!r})
hn.attach(pipe, {str(WEIGHTS.joinpath("adapter"))!r})
diffusers.utils.logging.enable_progress_bar(), transformers.utils.logging.enable_progress_bar()

from hypernoise.cli import main
main(["generate", "a red circle", "--device", "cpu", "--adapter", "scenes", "--output-dir", OUTPUT])
"""


def test_import_load_reward_attach_and_generate_say_nothing(tmp_path):
    own = {name: value for name, value in os.environ.items() if "VERBOSITY" not in name}
    call = [sys.executable, "-c", f"OUTPUT = {str(tmp_path)!r}\n{CODE}"]
    done = subprocess.run(call, env=own, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.fixture
def heard():
    """What the logger of that message lets through, in its library's own way."""
    logger, sink = logging.getLogger(TRANSFORMERS), io.StringIO()
    handler = logging.StreamHandler(sink)
    logger.addHandler(handler)
    yield sink
    logger.removeHandler(handler)


def test_one_message_is_dropped_and_every_other_is_heard(heard):
    quiet.drop_idle_advice()
    logger = logging.getLogger(TRANSFORMERS)
    assert logger.filters.count(quiet._is_heard) == 1  # however often it is called
    logger.warning("`CLIPImageProcessor` requires torchvision (not installed); falling back to `%s`", "Pil")
    logger.warning("`Other` requires torchvision, which is too old")
    assert heard.getvalue() == "`Other` requires torchvision, which is too old\n"


def test_the_library_changes_no_level_and_no_handler():
    code = (
        "import logging; root, theirs = logging.getLogger(), logging.getLogger('transformers.utils.import_utils'); "
        "seen = lambda: [(log.level, log.handlers[:], log.propagate, log.disabled) for log in (root, theirs)]; "
        "before = seen(); import hypernoise; assert seen() == before; assert not root.filters; "
        "import sys; assert 'transformers' not in sys.modules; import warnings; print(len(warnings.filters))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain = [sys.executable, "-c", "import warnings; print(len(warnings.filters))"]
    assert process.stdout == subprocess.run(plain, capture_output=True, text=True, check=True).stdout


def test_bars_are_off_inside_and_as_they_were_after():
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    of_transformers.disable_progress_bar()
    try:
        with quiet.no_loading_bars():
            assert not any(library.is_progress_bar_enabled() for library in libraries)
        assert [library.is_progress_bar_enabled() for library in libraries] == [True, False]
    finally:
        of_transformers.enable_progress_bar()
