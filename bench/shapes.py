"""What is compared: the shapes, and the dtypes of queries and cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """num_seqs sequences, each with a chunk of queries at the end of its context."""

    chunk: int
    context: int
    num_q_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    num_seqs: int = 1

    @property
    def name(self) -> str:
        """As --only takes it: 512@4096x128, 8*1@4096x128."""
        batch = f"{self.num_seqs}*" if self.num_seqs > 1 else ""
        return f"{batch}{self.chunk}@{self.context}x{self.head_dim}"

    @property
    def tokens(self) -> str:
        """As the reports write it: 512 @ 4096, 8 x 1 @ 4096."""
        batch = f"{self.num_seqs} x " if self.num_seqs > 1 else ""
        return f"{batch}{self.chunk} @ {self.context}"

    @property
    def text(self) -> str:
        return f"{self.tokens}, {self.heads}/{self.head_dim}"

    @property
    def heads(self) -> str:
        return f"{self.num_q_heads}/{self.num_kv_heads}"

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def is_decode(self) -> bool:
        return self.chunk == 1

    @property
    def useful_flops(self) -> float:
        """4 * head_dim for each visible (query, key) pair and head."""
        past = self.context - self.chunk
        pairs = self.chunk * past + self.chunk * (self.chunk + 1) / 2
        return 4.0 * self.head_dim * pairs * self.num_q_heads * self.num_seqs

    def cache_bytes(self, element_size: int) -> int:
        """The keys and values that a decode step reads."""
        return 2 * self.num_seqs * self.context * self.num_kv_heads * self.head_dim * element_size


@dataclass(frozen=True)
class Dtypes:
    """Of queries (and outputs) and of the cache; error_limit bounds a correct output's error."""

    name: str
    query: str
    cache: str
    error_limit: float

    @property
    def cache_element_size(self) -> int:
        return {"float32": 4, "bfloat16": 2, "int8": 1}[self.cache]


# The error is rms(output - reference) / rms(reference). A key too many or too few of 8192 moves it by
# about 1e-2 and more. float32: the rounding of sums of thousands of terms. bfloat16: outputs round at 2^-9,
# and some peers round the weights as well. int8: half a step of a scale that covers 4 to 5 standard
# deviations is 1e-2 of one.
FLOAT32 = Dtypes("float32", "float32", "float32", 1e-5)
BFLOAT16 = Dtypes("bfloat16", "bfloat16", "bfloat16", 1e-2)
BFLOAT16_CACHE = Dtypes("float32, bfloat16 cache", "float32", "bfloat16", 1e-2)
INT8_CACHE = Dtypes("float32, int8 cache", "float32", "int8", 3e-2)

STANDARD = (
    Shape(512, 4096),
    Shape(2048, 2048),
    Shape(64, 4096),
    Shape(512, 4096, head_dim=64),
    Shape(512, 2048, num_q_heads=16, num_kv_heads=4, head_dim=256),
    Shape(1, 8192),
    Shape(1, 4096, num_seqs=8),
)
STANDARD_DTYPES = (FLOAT32, BFLOAT16, BFLOAT16_CACHE, INT8_CACHE)

# Time against context. From the second length on pagefill alone: the peers' copies of the cache, and
# the scores that some of them hold, would not fit a small machine.
CONTEXTS = tuple(Shape(512, context) for context in (8192, 16384, 32768))
LONG_CONTEXTS = tuple(Shape(512, context) for context in (65536, 131072))
CONTEXT_DTYPES = (FLOAT32, BFLOAT16)

# Decode by the query heads that share a KV head (1, 4, 5, 8), and of many sequences.
DECODE = (
    *(Shape(1, 32768, num_q_heads=8 * group) for group in (1, 4, 5, 8)),
    Shape(1, 1024, num_seqs=64),
)
DECODE_DTYPES = (FLOAT32, BFLOAT16, INT8_CACHE)

# Speculative chunks: how much longer than one row they take. pagefill alone, as the rest.
ROWS = tuple(Shape(rows, 32768, num_q_heads=8) for rows in (1, 2, 4, 8, 12, 16))
ROWS_DTYPES = (FLOAT32, BFLOAT16)

HEAD_DIMS = (
    *(Shape(512, 4096, head_dim=head_dim) for head_dim in (80, 96, 112)),
    Shape(512, 2048, num_q_heads=16, num_kv_heads=4, head_dim=512),
)
HEAD_DIMS_DTYPES = (FLOAT32, BFLOAT16)

QUICK = (
    Shape(128, 1024),
    Shape(256, 256, head_dim=64),
    Shape(1, 2048),
    Shape(1, 512, num_seqs=8),
)
QUICK_CONTEXTS = (Shape(128, 2048), Shape(128, 4096))
QUICK_DECODE = (Shape(1, 2048, num_q_heads=8),)
QUICK_ROWS = tuple(Shape(rows, 4096, num_q_heads=8) for rows in (1, 4))
QUICK_HEAD_DIMS = (Shape(128, 1024, head_dim=80),)

ALL = (*STANDARD, *CONTEXTS, *LONG_CONTEXTS, *DECODE, *ROWS, *HEAD_DIMS)
