"""Where one step of sampling goes: python benchmarks/profile.py [--size sd15|37m|tiny] [--device cpu|cuda] ...

    python benchmarks/profile.py                                Stable Diffusion 1.5's size, 128x128, on the CPU
    python benchmarks/profile.py --device cuda --pixels 512     on a GPU, bf16
    python benchmarks/profile.py --size 37m --pixels 256        a smaller network, to try it

One guided window of 16 frames through the engine, random weights: share of the time by kind of operator, calls or
kernels, the time in which no operator or kernel runs, and by kind the fraction of the machine's matrix rate and of its
copy bandwidth, measured in the same run. The floor is the arithmetic of the matrix products at that rate. The table is
printed; a line goes to benchmarks/results/profile.jsonl, the trace (chrome://tracing, Perfetto) to out/profile.
"""

from __future__ import annotations

import sys

if (
    __name__ == "profile"
):  # `import profile` from this folder (cProfile, and so torch.compile) means Python's own
    import importlib.util
    import sysconfig
    from pathlib import Path

    _spec = importlib.util.spec_from_file_location(
        "profile", Path(sysconfig.get_path("stdlib")) / "profile.py"
    )
    sys.modules["profile"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["profile"])
else:
    from _profile import main

    if __name__ == "__main__":
        main()
