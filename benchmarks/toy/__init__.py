"""Which method needs the fewest images, on a diffusion model so small that a run takes seconds."""
