"""Mixed precision: what a run computes in, on the device that it is on. Imports torch only when asked.

`auto` is bf16 where the device has units for it, else fp32. Measured on two cores with AMX: a picture of the embedded
generator takes 1.4 to 2 times as long in fp32 as in bf16; with `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`,
which hides the units, bf16 takes 15 times as long as fp32 (600 ms against 40), a convolution 25 times and more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

MixedPrecision = Literal["auto", "no", "bf16", "fp16"]

WEIGHTS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
SLOWER = "about 15 to 25 times slower than no"
NAMES = {"cuda": "GPU", "cpu": "CPU"}
WITHOUT_BF16 = ("SSE", "AVX2", "AVX512_CORE_VNNI")  # of ONEDNN_MAX_CPU_ISA; AVX and AVX512_CORE whole


@dataclass(frozen=True)
class Precision:
    """What `mixed_precision` comes to on a device: no, bf16 or fp16; `why`, for the reader; whether it is `slow`."""

    name: Literal["no", "bf16", "fp16"]
    why: str
    slow: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights, and of the products inside autocast."""
        import torch

        return getattr(torch, WEIGHTS[self.name])

    @property
    def line(self) -> str:
        return f"mixed precision: {self.name} ({self.why})"


def resolve(asked: MixedPrecision, device: torch.device) -> Precision:
    """What is computed in on `device`; "meta", on which plans are made, counts as a GPU with bf16."""
    named = NAMES.get(device.type)
    if asked == "auto" and device.type == "meta":
        return Precision("bf16", "as on a GPU from Ampere on")
    if asked == "auto" and named is None:
        return Precision("no", f"bf16 is not measured on {device.type}")
    if asked == "auto" and native_bf16(device):
        return Precision("bf16", f"this {named} has bf16 units")
    if asked == "auto":
        return Precision("no", f"this {named} has no bf16 units" + ("; fp16 may fit" if named == "GPU" else ""))
    if asked == "bf16" and device.type == "cpu" and not native_bf16(device):
        return Precision("bf16", f"as asked; this CPU has no bf16 units: {SLOWER}", slow=True)
    return Precision(asked, "as asked")


def native_bf16(device: torch.device) -> bool:
    """Whether the device itself multiplies in bf16, rather than by way of fp32: AMX, AVX512-BF16, CUDA from Ampere on.

    torch names what the processor has, whatever it is allowed to use: the variables that allow less are looked at too.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False  # the capability is after ATEN_CPU_CAPABILITY
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if allowed in ("AVX", "AVX512_CORE") or allowed.startswith(WITHOUT_BF16):
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
