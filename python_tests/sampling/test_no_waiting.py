"""The host never waits for the device inside the step loop: a network on the "meta" device stands for a GPU."""

import pytest
import torch
from diffusers import ControlNetModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.sampling.test_engine import Wobble, noise, schedule_of
from python_tests.tiny import tiny_model
from vidsmooth_fast.conditioning.controls import Control
from vidsmooth_fast.conditioning.prompts import PromptTrack
from vidsmooth_fast.models.unet import AttentionWindows
from vidsmooth_fast.sampling import engine
from vidsmooth_fast.sampling.controlled import ControlledDenoiser, ControlNets
from vidsmooth_fast.sampling.denoiser import UNetDenoiser
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.inversion import invert_latents
from vidsmooth_fast.sampling.latents import Store
from vidsmooth_fast.sampling.smoothing import InversionBlend, NoiseConstraint
from vidsmooth_fast.sampling.windowed import WindowedPredictor, Windows
from vidsmooth_fast.sampling.windows import plan, window_weights

FRAMES, WINDOW, STRIDE, SIZE, STEPS = 12, 4, 2, 8, 3
aten = torch.ops.aten
READS = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.unique_consecutive, aten._unique2)


def is_far(*values):
    return any(isinstance(value, torch.Tensor) and value.is_meta for value in values)


class Waits(TorchDispatchMode):
    """Notes what would make the host wait: values read, and copies between host and device that are not queued.

    Copies to and from the meta device are left out otherwise; so are pieces that would have to be gathered first.
    """

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # in inference mode these arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if packet in READS and is_far(*args):
            self.found.append(str(func))
            return 0 if packet is aten._local_scalar_dense else torch.zeros(0)
        if packet is aten.copy_ and args[0].device != args[1].device:
            self.copies += 1
            queued = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if not queued:
                self.found.append(f"a copy that is waited for, {tuple(args[1].shape)}")
            elif not (args[0].is_contiguous() and args[1].is_contiguous()):
                self.found.append(f"a copy of scattered pieces, {tuple(args[1].shape)}")
            return args[0]
        if packet is aten._to_copy and torch.device(kwargs.get("device") or "cpu") != args[0].device:
            if kwargs.get("device") is not None:
                self.copies += 1
                if not kwargs.get("non_blocking", False):
                    self.found.append(f"to() that is waited for, {tuple(args[0].shape)}")
                return torch.empty(
                    args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, **device(kwargs)
                )
        return func(*args, **kwargs)


def device(kwargs):
    return {"device": kwargs["device"]}


class Made(TorchFunctionMode):
    """Notes tensors made from Python numbers on the device: their values are copied, and waited for."""

    def __init__(self, waits):
        super().__init__()
        self.found = waits.found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and str(kwargs.get("device", "cpu")) != "cpu":
            self.found.append(f"{func.__name__} on the device")
        return func(*args, **kwargs)


class Flag:
    """A flag on a device: read one step later, and by then it has arrived."""

    on_device = True

    def __init__(self, flag):
        assert flag.is_meta and flag.shape == ()

    def read(self):
        return True


@pytest.fixture(autouse=True)
def flag(monkeypatch):
    monkeypatch.setattr(engine, "_FiniteFlag", Flag)


class FarWobble(Wobble):
    device = torch.device("meta")


def far_network(inside=None):
    """The tiny network without values, on a device that is not the host."""
    return UNetDenoiser(tiny_model().unet.to("meta"), inside)


def controlled_network(inside=None):
    """The same with a ControlNet beside it, whose maps wait on the host."""
    with torch.device("meta"):
        network = ControlNetModel(
            block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            layers_per_block=1, norm_num_groups=4, attention_head_dim=4, cross_attention_dim=16,
            conditioning_embedding_out_channels=(8, 16),
        )  # fmt: skip
    controls = ControlNets.__new__(ControlNets)
    controls.controls, controls.networks = (Control("net"),), [network.eval()]
    controls._maps = [torch.zeros(1, 3, FRAMES, 2 * SIZE, 2 * SIZE, dtype=torch.uint8)]
    return ControlledDenoiser(far_network(inside), controls)


def predictor(network=None, prompts=1, merge="latent", branches=2):
    starts, weights = plan(FRAMES, WINDOW, STRIDE), window_weights("hann", WINDOW)
    windows, inside = Windows(starts, weights, FRAMES), None
    if merge == "attention":
        inside = AttentionWindows(starts, weights.to("meta"))
        windows = Windows((0,), torch.ones(FRAMES), FRAMES)
    keys = tuple(range(0, FRAMES, FRAMES // prompts))[:prompts]
    track = PromptTrack(keys, torch.zeros(prompts, 16, 16, device="meta"))
    denoiser = network(inside) if network else FarWobble()
    return WindowedPredictor(denoiser, windows, [track] * branches, max_batch=4, segment_frames=12)


def counted(run):
    """What a run waits for from its second step on: the first one brings tables to the device, once."""
    with Waits() as waits, Made(waits):
        at_first: list[int] = []

        def after_step(state):
            if state.done == 1:
                at_first.append(len(waits.found))
            if state.done == STEPS:
                at_first.append(len(waits.found))

        run(after_step)
    first, last = at_first
    return waits.found[first:last], waits.copies


CASES = {
    "network": {"network": far_network},
    "network, merged in attention": {"network": far_network, "merge": "attention"},
    "controls": {"network": controlled_network},
    "controls, prompts over time": {"network": controlled_network, "prompts": 5},
    "controls, merged in attention": {"network": controlled_network, "merge": "attention"},
    "history": {"scheduler": "dpmpp_2m"},
    "source": {"smooth": NoiseConstraint(0.25, "source"), "source": noise(FRAMES, size=SIZE)},
    "stochastic": {"eta": 0.5, "smooth": NoiseConstraint(0.25)},
    "clipped": {"config": {"clip_sample": True}},
    "prompts over time": {"prompts": 5},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_sampling_does_not_wait(case):
    options = dict(CASES[case])
    planned = {name: options.pop(name) for name in ("network", "prompts", "merge") if name in options}
    predict = predictor(**planned)
    made = {name: options.pop(name) for name in ("scheduler", "config", "eta") if name in options}
    schedule = schedule_of(STEPS, **made)

    def run(after_step):
        with torch.inference_mode():
            state = State(noise(FRAMES, size=SIZE))
            denoise(
                predict, state, schedule, guidance=Guidance.of_scale(3.0), after_step=after_step, **options
            )

    waits, copies = counted(run)
    assert waits == [] and copies > 10


@pytest.mark.parametrize("kind", ["implied", "shared"])
def test_inversion_does_not_wait(kind):
    predict = predictor(branches=1)

    def run(after_step):
        with torch.inference_mode():
            invert_latents(
                predict, noise(FRAMES, size=SIZE), schedule_of(STEPS), blend=InversionBlend(0.3, noise=kind),
                after_step=after_step,
            )  # fmt: skip

    assert counted(run)[0] == []


def test_waiting_is_noticed():
    """The test can fail: a value read by a callback or by the network is counted."""
    predict = predictor(far_network)
    unet = predict.denoiser.unet
    embed_time = unet.embed_time
    unet.embed_time = lambda t: embed_time(torch.as_tensor(t, device="meta"))

    def run(after_step):
        def reading(state):
            after_step(state)
            torch.ones(1, device="meta").sum().item()
            torch.ones(1, device="meta").to("cpu")

        with torch.inference_mode():
            state = State(noise(FRAMES, size=SIZE))
            denoise(predict, state, schedule_of(STEPS), guidance=Guidance.of_scale(3.0), after_step=reading)

    found, _ = counted(run)
    assert any("_local_scalar_dense" in name for name in found)
    assert any("to() that is waited for" in name for name in found)
    assert any("as_tensor" in name for name in found)


def test_buffers_are_pinned_for_a_gpu():
    shape = (1, 4, 8, 4, 4)
    assert Store(shape, torch.device("cuda")).pinned and not Store(shape, torch.device("cpu")).pinned
