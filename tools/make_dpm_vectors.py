"""Makes tests/golden/dpm.safetensors: runs of diffusers' DPM-Solver++(2M), for tests/diffusion/dpm_test.cpp.

    python3 -m venv /var/tmp/v && /var/tmp/v/bin/pip install numpy==2.2.6 torch==2.11.0 safetensors diffusers==0.42.1
    /var/tmp/v/bin/python tools/make_dpm_vectors.py tests/golden/dpm.safetensors

DPMSolverMultistepScheduler with the settings below. The model is eps(x, t) = sin(x + 0.002 t), so that the test can ask
the same one. All in float32.

    NAME_timesteps   (S) int64          as visited, from the noisiest
    NAME_start       (2, 3, 4, 4)       standard normals
    NAME_states      (S, 2, 3, 4, 4)    x after each step
        NAME: steps20; steps9 (fewer than 15: lower_order_final); steps2, steps1 (no second-order step);
        by_hand (a list of timesteps, 0 among them)
    spacing_N        (N) int64          timesteps of N steps, as visited
"""

import sys

import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import save_file

SETTINGS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", solver_order=2,
                algorithm_type="dpmsolver++", solver_type="midpoint", lower_order_final=True,
                timestep_spacing="linspace", final_sigmas_type="zero", prediction_type="epsilon")
RUNS = {"steps20": 20, "steps9": 9, "steps2": 2, "steps1": 1, "by_hand": [999, 801, 555, 300, 121, 40, 0]}
SPACINGS = (1, 2, 3, 7, 10, 18, 25, 50, 74, 100, 250, 333, 500, 999)


def scheduler(steps):
    made = DPMSolverMultistepScheduler(**SETTINGS)
    if isinstance(steps, int):
        made.set_timesteps(steps)
    else:
        made.set_timesteps(timesteps=steps)
    return made


def record(steps):
    made = scheduler(steps)
    x = start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(len(made.timesteps)))
    states = []
    for t in made.timesteps:
        x = made.step(torch.sin(x + 0.002 * t), t, x).prev_sample
        states.append(x)
    return {"timesteps": made.timesteps, "start": start, "states": torch.stack(states)}


def main():
    tensors = {f"{name}_{key}": value for name, steps in RUNS.items() for key, value in record(steps).items()}
    for steps in SPACINGS:
        tensors[f"spacing_{steps}"] = scheduler(steps).timesteps
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
