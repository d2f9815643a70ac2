"""The frozen base sharded over the processes (torch's FSDP2), for generators that no device holds whole.

Every process has the whole LoRA. A block's weights are gathered when it is called, forward or backward, then released.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hypernoise.errors import InputError
from hypernoise.noise.lora import LoRANoise
from hypernoise.training.processes import launched


def shard_base(network: LoRANoise, parts: str, device: torch.device) -> None:
    """Shards the frozen weights under a noise network over all processes, and moves the rest to each one's device.

    From then on all processes must call the sharded parts together: none can draw alone.

    Args:
        network: on a generator that may rest on the CPU; moved block by block, so that no device ever holds it whole.
        parts: "denoiser", or "all" for the text encoders too.

    Raises:
        InputError: there is one process only, or torch is older than 2.7.
    """
    if launched()[1] == 1:
        raise InputError("shard_base needs several processes: start the run with torchrun or accelerate launch")
    PartialState(cpu=device.type == "cpu")  # joins the others, as `start` would later
    generator = network.generator
    generator.describe()  # while each process still has the whole weights
    network.to(device)
    mesh = init_device_mesh(device.type, (launched()[1],))
    for name, part in generator.pipeline.components.items():
        if part is generator.called or (parts == "all" and name.startswith("text_encoder") and part is not None):
            # the part's own weights are released after forward too: torch would keep them for a backward
            for block in [*_blocks(part), part]:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh, reshard_after_forward=True)
        elif isinstance(part, nn.Module):
            part.to(device)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of a network's lists of layers, but not of lists within these."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)
