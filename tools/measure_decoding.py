"""Measures VAE slicing: peak memory and seconds of decoding on this CPU, with and without it.

The VAE has Stable Diffusion's architecture and random weights, on which the figures do not depend.

    for helper in none slicing; do python -m tools.measure_decoding --helper $helper; done
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
from diffusers import AutoencoderKL

from ddpo.cost.footprint import known_architecture


def main() -> None:
    """Decode once and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sd-1.5", help="sd-1.5, sd-2.1 or sdxl")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--size", type=int, default=512, help="of a side, in pixels")
    parser.add_argument("--helper", choices=("none", "slicing"), default="none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_config(known_architecture(arguments.model)["vae"]).eval()
    if arguments.helper == "slicing":
        vae.enable_slicing()
    latents = torch.randn(arguments.pictures, 4, arguments.size // 8, arguments.size // 8)
    before, started = _peak_gb(), time.perf_counter()
    with torch.inference_mode():
        vae.decode(latents)
    seconds = time.perf_counter() - started
    sys.stdout.write(
        f"{arguments.model}, {arguments.pictures} pictures of {arguments.size} pixels, "
        f"{arguments.helper}: {_peak_gb() - before:.2f} GB over the VAE itself, {seconds:.0f} s\n"
    )


def _peak_gb() -> float:
    """Peak resident memory of this process so far, in GB (Linux counts it in kB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
