"""Run a bundle's network in a process that can start no other and compile nothing: BUNDLE INPUTS RESULTS.

Prints, as JSON, how often each kernel of the package's operators was called.
"""

import json
import os
import subprocess
import sys


def forbidden(*args, **keywords):
    raise AssertionError("something was to be compiled or started")


subprocess.Popen.__init__ = forbidden
os.system = os.posix_spawn = os.fork = forbidden
os.environ["PATH"] = ""

import torch  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from vidsmooth_fast.models.bundle_model import BundleModel  # noqa: E402
from vidsmooth_fast.ops import _dispatch  # noqa: E402

torch._inductor.compile_fx.compile_fx = torch._inductor.compile_fx.compile_fx_aot = forbidden
torch._dynamo.optimize = torch.compile = torch.export.export = forbidden

calls: dict[str, int] = {}
for name, backends in _dispatch._operators.items():
    for key, backend in backends.items():

        def counted(*args, kernel=f"{name} {key}", run=backend.run, **keywords):
            calls[kernel] = calls.get(kernel, 0) + 1
            return run(*args, **keywords)

        backends[key] = backend._replace(run=counted)

bundle, inputs, results = sys.argv[1:]
network = BundleModel(bundle).network
tensors, outputs = load_file(inputs), {}
for case in sorted({name.partition(".")[0] for name in tensors}):
    named = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(f"{case}.")}
    outputs[case] = network(**named)
save_file(outputs, results)
print(json.dumps(calls))
