"""A run keeps the memory that it frees, and gives it back when it ends."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from vidsmooth_fast.sampling import heap
from vidsmooth_fast.sampling.heap import kept_heap

CPU = torch.device("cpu")
SCRIPT = """
import resource, psutil, torch
from vidsmooth_fast.sampling.heap import kept_bytes, kept_heap
CPU = torch.device("cpu")
torch.set_num_threads(1)

def faults():  # pages that the system provides while a tensor of 48 MB is made, filled and dropped eight times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(12 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def megabytes():
    return psutil.Process().memory_info().rss >> 20

start = megabytes()
print(faults())
with kept_heap(CPU):
    with kept_heap(CPU):
        faults()
        print(faults())
    print(megabytes() - start)
    print(kept_bytes() >> 20)
print(megabytes() - start)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or heap._mallopt() is None, reason="glibc with its own thresholds"
)
def test_freed_memory_is_used_again_and_goes_back_at_the_end_of_the_outermost():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    without, kept, inside, free, after = (int(line) for line in done.stdout.split())
    assert kept < 10 and kept < without
    assert inside >= 48 and free >= 48 and after < 16


def test_before_glibc_2_35(monkeypatch):
    """It refuses more than 32 MB; the trim threshold alone would end its adaptation at 128 KB."""
    given = []

    def mallopt(parameter, value):
        given.append((parameter, value))
        return int(parameter != heap._MMAP_THRESHOLD or value <= 2**25)

    monkeypatch.setattr(heap, "_mallopt", lambda: mallopt)
    with kept_heap(CPU):
        assert given == [(-3, 2**30), (-3, 2**25), (-1, -1)]


def test_gpus_are_left_alone():
    with kept_heap(torch.device("cuda")):
        assert heap._runs == 0


def test_it_ends_when_a_run_fails():
    with pytest.raises(ZeroDivisionError), kept_heap(CPU):
        raise ZeroDivisionError
    assert heap._runs == 0


@pytest.mark.parametrize("name", heap._SETTINGS)
def test_settings_of_the_environment_stay(monkeypatch, name):
    monkeypatch.setitem(os.environ, name, "65536")
    assert heap._mallopt() is None
    with kept_heap(CPU):
        assert heap._runs == 0


def test_other_c_libraries(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    with kept_heap(CPU):
        assert heap._runs == 0
