"""What is compared on a GPU: bfloat16, one sequence unless said, causal."""

from __future__ import annotations

from dataclasses import dataclass

from ..shapes import Shape

PAGE_SIZE = 16
ODD_PAGE_SIZES = (1, 3)  # pagefill alone, on the shapes that say so

# rms(output - reference) / rms(reference). Rounding outputs and weights to bfloat16 makes 2.4e-3 of it; a key
# too many or too few at the end of a row of 32768 normal keys makes 9e-3.
ERROR_LIMIT = 5e-3


@dataclass(frozen=True)
class Case:
    """kind: prefill (the same inputs call after call, L2 warm, TFLOP/s), decode (inputs that take turns
    beyond the L2, bytes of cache a second) or launch (as prefill; microseconds)."""

    kind: str
    shape: Shape
    odd_pages: bool = False

    @property
    def name(self) -> str:
        return self.shape.name

    @property
    def cache_bytes(self) -> int:
        return self.shape.cache_bytes(element_size=2)

    @property
    def text(self) -> str:
        return f"{self.kind} {self.shape.text}"

    def rate(self, seconds: float) -> tuple[float, str]:
        """As its kind counts it, and the unit."""
        if self.kind == "launch":
            return seconds * 1e6, "us"
        if self.kind == "decode":
            return self.cache_bytes / seconds / 1e9, "GB/s"
        return self.shape.useful_flops / seconds / 1e12, "TFLOP/s"

    def rate_text(self, seconds: float) -> str:
        value, unit = self.rate(seconds)
        return f"{value:.{2 if unit == 'us' else 0}f} {unit}"


CASES = (
    Case("prefill", Shape(512, 8192), odd_pages=True),
    Case("prefill", Shape(640, 8192)),
    Case("prefill", Shape(512, 32768)),
    Case("prefill", Shape(128, 32768)),
    Case("prefill", Shape(2048, 32768), odd_pages=True),
    Case("prefill", Shape(2048, 131072)),
    Case("prefill", Shape(8192, 8192)),
    Case("prefill", Shape(512, 32768, head_dim=64)),
    Case("prefill", Shape(2048, 32768, head_dim=64)),
    Case("prefill", Shape(2048, 32768, num_q_heads=16, num_kv_heads=4, head_dim=256)),
    Case("decode", Shape(1, 32768), odd_pages=True),
    Case("decode", Shape(1, 32768, num_seqs=16), odd_pages=True),
    Case("decode", Shape(1, 8192, num_seqs=64)),
    Case("decode", Shape(16, 32768)),
    Case("launch", Shape(512, 512)),
    Case("launch", Shape(1, 128)),
)
