"""The inputs of one case on the device, and the layouts in which the peers want them."""

from __future__ import annotations

from functools import lru_cache

import torch

from .shapes import Case

ROTATED_BYTES = 256e6  # several times the L2 of any device so far
MAX_SETS = 32


class Inputs:
    """bfloat16 standard normal numbers. query: [num_sets, total_tokens, num_q_heads, head_dim]; keys and
    values: [num_sets, num_seqs, context, num_kv_heads, head_dim]. Layouts are made once for all peers
    that share them."""

    def __init__(self, case: Case) -> None:
        shape = self.shape = case.shape
        self.num_sets = 1
        if case.kind == "decode":
            self.num_sets = min(int(ROTATED_BYTES / case.cache_bytes) + 1, MAX_SETS)
        generator = torch.Generator("cuda").manual_seed(1)

        def normal(*size: int) -> torch.Tensor:
            options = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
            return torch.randn(self.num_sets, *size, **options)

        cache = (shape.num_seqs, shape.context, shape.num_kv_heads, shape.head_dim)
        self.query = normal(shape.num_seqs * shape.chunk, shape.num_q_heads, shape.head_dim)
        self.keys, self.values = normal(*cache), normal(*cache)
        self.pages = lru_cache(maxsize=None)(self._pages)
        self.page_table = lru_cache(maxsize=None)(self._page_table)

    def starts(self, step: int) -> torch.Tensor:
        """int32 [num_seqs + 1]: where sequences of that many tokens begin."""
        return torch.arange(self.shape.num_seqs + 1, device="cuda", dtype=torch.int32) * step

    def lengths(self) -> torch.Tensor:
        """int32 [num_seqs]"""
        return torch.full((self.shape.num_seqs,), self.shape.context, device="cuda", dtype=torch.int32)

    def outputs(self) -> torch.Tensor:
        """In the shape of query."""
        return torch.empty_like(self.query)

    def _page_table(self, page_size: int) -> torch.Tensor:
        """int32 [num_seqs, num_pages]: physical pages, at random through the whole cache."""
        num_pages = -(-self.shape.context // page_size)
        generator = torch.Generator().manual_seed(page_size)
        table = torch.randperm(self.shape.num_seqs * num_pages, generator=generator)
        return table.view(self.shape.num_seqs, num_pages).int().cuda()

    def _pages(self, page_size: int, heads_first: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values by page_table: [num_sets, total_num_pages, page_size, num_kv_heads, head_dim],
        or with heads first [num_sets, num_kv_heads, total_num_pages, page_size, head_dim]."""
        both = []
        table = self.page_table(page_size).view(-1).long()
        for tokens in (self.keys, self.values):
            sets, num_seqs, context, heads, head_dim = tokens.shape
            padding = -context % page_size
            padded = torch.nn.functional.pad(tokens, (0, 0, 0, 0, 0, padding))
            by_page = padded.view(sets, len(table), page_size, heads, head_dim)
            cache = torch.empty_like(by_page)
            cache[:, table] = by_page
            if heads_first:
                cache = cache.permute(0, 3, 1, 2, 4).contiguous()
            both.append(cache)
        return both[0], both[1]
