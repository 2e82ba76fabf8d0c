"""Calls from several threads."""

from __future__ import annotations

import threading

import torch
from torch_cases import bits, random_tensors

from pagefill.torch import prefill_page_attention


def test_two_threads_call_at_once() -> None:
    problems = [random_tensors(chunk_size=9, context_len=300, seed=seed) for seed in (0, 1)]
    wanted = [bits(prefill_page_attention(*problem)) for problem in problems]
    start, wrong = threading.Barrier(2), []

    def call(which: int) -> None:
        start.wait()
        for _ in range(200):
            result = bits(prefill_page_attention(*problems[which]))
            if result != wanted[which]:
                wrong.append(which)

    threads = [threading.Thread(target=call, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_gil_is_released_while_computing() -> None:
    query, keys, values, _, pages = random_tensors(
        chunk_size=512, context_len=4096, num_q_heads=16, num_kv_heads=2, head_dim=128, page_size=16
    )
    computing, ticks = threading.Event(), 0

    def call() -> None:
        computing.set()
        prefill_page_attention(query, keys, values, 4096, pages)
        computing.clear()

    thread = threading.Thread(target=call)
    thread.start()
    computing.wait()
    while computing.is_set():
        ticks += 1
        computing.wait(0)
    thread.join()
    assert ticks > 100, "the other thread had to wait for the call"
    assert torch.is_grad_enabled()
