"""Mixed precision: what a run computes in on its device. Imports torch only when needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

MixedPrecision = Literal["auto", "no", "bf16", "fp16"]

WEIGHTS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
SLOWER = "this CPU has no bf16 units: about 15 to 25 times slower than fp32"
WITHOUT_BF16 = ("SSE", "AVX2", "AVX512_CORE_VNNI")  # values of ONEDNN_MAX_CPU_ISA; AVX and AVX512_CORE as whole words


@dataclass(frozen=True)
class Precision:
    """`mixed_precision` resolved on a device: no, bf16 or fp16; `why`, for the user; whether it is `slow`."""

    name: Literal["no", "bf16", "fp16"]
    why: str = "as requested"
    slow: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen weights, and of products inside autocast."""
        import torch

        return getattr(torch, WEIGHTS[self.name])

    def autocast(self, device: torch.device) -> torch.autocast:
        """Matrix products inside the block are in this precision, if it is mixed."""
        import torch

        return torch.autocast(device.type, self.dtype if self.name != "no" else None, enabled=self.name != "no")

    @property
    def line(self) -> str:
        return f"mixed precision: {self.name} ({self.why})"


def resolve(asked: MixedPrecision, device: torch.device) -> Precision:
    """The precision on `device`; "meta", the device of plans, counts as a GPU with bf16."""
    kind = device.type
    if asked != "auto":
        slow = asked == "bf16" and kind == "cpu" and not native_bf16(device)
        return Precision(asked, f"as requested; {SLOWER}" if slow else "as requested", slow)
    if kind == "meta":
        return Precision("bf16", "as on an Ampere or newer GPU")
    if kind not in ("cuda", "cpu"):
        return Precision("no", f"bf16 is not measured on {kind}")
    this = "this CPU" if kind == "cpu" else "this GPU"
    if native_bf16(device):
        return Precision("bf16", f"{this} has bf16 units")
    return Precision("no", f"{this} has no bf16 units" + ("; fp16 may fit" if kind == "cuda" else ""))


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 natively rather than through fp32: AMX, AVX512-BF16, Ampere or newer GPUs.

    torch reports the processor's features, even disabled ones: so the variables that disable them are checked too.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False  # capability() is limited by ATEN_CPU_CAPABILITY
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if allowed in ("AVX", "AVX512_CORE") or allowed.startswith(WITHOUT_BF16):
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
