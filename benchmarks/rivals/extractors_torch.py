"""Networks of features by one rival: a worker of compare_extractors.py that runs a lap for every line it reads.

    extractors_torch.py --rival eager|compile|openvino --network resnet56|lite0|inception --batch 16 --threads 2 [--channels-last] [--dtype bf16]

The networks as plain modules with random weights, which cost what the published ones cost. The FID Inception's pools leave
padding out of their means and take the largest value in its last block. Inputs have the network's size: no resize is timed.
Answers "ready VERSION" once warm, then a line a lap: images a second, by the clock and by seconds of processors.
"""

import argparse
import sys
import tempfile
import time

import torch
from torch import nn
from torch.nn import functional

SIDES = {"resnet56": 32, "lite0": 224, "inception": 299}


class Unit(nn.Sequential):
    """A convolution, BatchNorm and an activation."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0, groups=1, activation=nn.ReLU):
        super().__init__(nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs),
                         *([activation(inplace=True)] if activation else []))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.conv2 = Unit(inputs, outputs, 3, stride, 1), Unit(outputs, outputs, 3, 1, 1, activation=None)
        self.more, self.stride = outputs - inputs, stride

    def forward(self, x):
        shortcut = x
        if self.more:
            shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return functional.relu(self.conv2(self.conv1(x)) + shortcut)


def resnet56():
    layers, inputs = [Unit(3, 16, 3, 1, 1)], 16
    for outputs in (16, 32, 64):
        for j in range(9):
            layers.append(BasicBlock(inputs, outputs, 2 if j == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Same(nn.Module):
    """TensorFlow's padding: the odd zero at the bottom and right."""

    def __init__(self, kernel, stride):
        super().__init__()
        zeros = kernel - stride
        self.zeros = (zeros // 2, zeros - zeros // 2) * 2

    def forward(self, x):
        return functional.pad(x, self.zeros)


class MobileBlock(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride, expand):
        super().__init__()
        wide, relu6 = inputs * expand, nn.ReLU6
        self.body = nn.Sequential(*([Unit(inputs, wide, 1, activation=relu6)] if expand > 1 else []), Same(kernel, stride),
                                  Unit(wide, wide, kernel, stride, groups=wide, activation=relu6), Unit(wide, outputs, 1, activation=None))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return self.body(x) + x if self.adds else self.body(x)


def lite0():
    rows = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))
    layers, inputs = [Same(3, 2), Unit(3, 32, 3, 2, activation=nn.ReLU6)], 32
    for kernel, stride, expand, outputs, count in rows:
        for j in range(count):
            layers.append(MobileBlock(inputs, outputs, kernel, stride if j == 0 else 1, expand))
            inputs = outputs
    return nn.Sequential(*layers, Unit(320, 1280, 1, activation=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


class Beside(nn.Module):
    """Branches that see the same map, concatenated."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def row(inputs, outputs, taps):
    return Unit(inputs, outputs, (1, taps), padding=(0, taps // 2))


def column(inputs, outputs, taps):
    return Unit(inputs, outputs, (taps, 1), padding=(taps // 2, 0))


def mean_pool():
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def block_a(n, pooled):
    return Beside(Unit(n, 64, 1), nn.Sequential(Unit(n, 48, 1), Unit(48, 64, 5, padding=2)),
                  nn.Sequential(Unit(n, 64, 1), Unit(64, 96, 3, padding=1), Unit(96, 96, 3, padding=1)),
                  nn.Sequential(mean_pool(), Unit(n, pooled, 1)))


def block_c(n, c):
    return Beside(Unit(n, 192, 1), nn.Sequential(Unit(n, c, 1), row(c, c, 7), column(c, 192, 7)),
                  nn.Sequential(Unit(n, c, 1), column(c, c, 7), row(c, c, 7), column(c, c, 7), row(c, 192, 7)),
                  nn.Sequential(mean_pool(), Unit(n, 192, 1)))


def block_e(n, pool):
    return Beside(Unit(n, 320, 1), nn.Sequential(Unit(n, 384, 1), Beside(row(384, 384, 3), column(384, 384, 3))),
                  nn.Sequential(Unit(n, 448, 1), Unit(448, 384, 3, padding=1), Beside(row(384, 384, 3), column(384, 384, 3))),
                  nn.Sequential(pool, Unit(n, 192, 1)))


def inception():
    halving = lambda: nn.MaxPool2d(3, 2)
    b = Beside(Unit(288, 384, 3, 2), nn.Sequential(Unit(288, 64, 1), Unit(64, 96, 3, padding=1), Unit(96, 96, 3, 2)), halving())
    d = Beside(nn.Sequential(Unit(768, 192, 1), Unit(192, 320, 3, 2)),
               nn.Sequential(Unit(768, 192, 1), row(192, 192, 7), column(192, 192, 7), Unit(192, 192, 3, 2)), halving())
    return nn.Sequential(Unit(3, 32, 3, 2), Unit(32, 32, 3), Unit(32, 64, 3, padding=1), halving(), Unit(64, 80, 1), Unit(80, 192, 3), halving(),
                         block_a(192, 32), block_a(256, 64), block_a(288, 64), b, block_c(768, 128), block_c(768, 160), block_c(768, 160),
                         block_c(768, 192), d, block_e(1280, mean_pool()), block_e(2048, nn.MaxPool2d(3, 1, 1)), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(2048, 1008))


def openvino_call(model, example, args):
    import openvino
    core = openvino.Core()
    kind = "bf16" if args.dtype == "bf16" else "f32"
    with tempfile.TemporaryDirectory():
        converted = openvino.convert_model(model, example_input=example)
    converted.reshape({0: list(example.shape)})
    compiled = core.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": kind, "INFERENCE_NUM_THREADS": args.threads,
                                                     "PERFORMANCE_HINT": "LATENCY"})
    request, values = compiled.create_infer_request(), example.numpy()
    return lambda: request.infer({0: values}), f"OpenVINO {openvino.__version__.split('-')[0]}"


def torch_call(model, example, args):
    kind = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model, example = model.to(kind, memory_format=layout), example.to(kind, memory_format=layout)
    if args.rival == "compile":
        import torch._inductor.config as inductor
        inductor.freezing = True
        model = torch.compile(model)
    return lambda: model(example), f"PyTorch {torch.__version__.split('+')[0]} {args.rival}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rival", choices=("eager", "compile", "openvino"), required=True)
    parser.add_argument("--network", choices=SIDES, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = {"resnet56": resnet56, "lite0": lite0, "inception": inception}[args.network]().eval().requires_grad_(False)
    side = SIDES[args.network]
    call, version = (openvino_call if args.rival == "openvino" else torch_call)(model, torch.randn(args.batch, 3, side, side), args)
    with torch.no_grad():
        for _ in range(3):
            call()
        print("ready", version, flush=True)
        for _ in sys.stdin:
            start, processors = time.perf_counter(), time.process_time()
            call()
            print(args.batch / (time.perf_counter() - start), args.batch / (time.process_time() - processors), flush=True)


if __name__ == "__main__":
    main()
