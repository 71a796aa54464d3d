"""A run keeps the memory that it frees, and gives it back when it ends."""

import ctypes
import os
import subprocess
import sys

import pytest

from vidsmooth_fast.sampling import heap
from vidsmooth_fast.sampling.heap import kept_heap

SCRIPT = """
import resource, psutil, torch
from vidsmooth_fast.sampling.heap import kept_heap
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
with kept_heap():
    with kept_heap():
        faults()
        print(faults())
    print(megabytes() - start)
print(megabytes() - start)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or heap._mallopt() is None, reason="glibc with its own thresholds"
)
def test_freed_memory_is_used_again_and_goes_back_at_the_end_of_the_outermost():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    without, kept, inside, after = (int(line) for line in done.stdout.split())
    assert kept < 10 and kept < without
    assert inside >= 48 and after < 16


def test_it_ends_when_a_run_fails():
    with pytest.raises(ZeroDivisionError), kept_heap():
        raise ZeroDivisionError
    assert heap._runs == 0


@pytest.mark.parametrize("name", heap._SETTINGS)
def test_settings_of_the_environment_stay(monkeypatch, name):
    monkeypatch.setitem(os.environ, name, "65536")
    assert heap._mallopt() is None
    with kept_heap():
        assert heap._runs == 0


def test_other_c_libraries(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    with kept_heap():
        assert heap._runs == 0
