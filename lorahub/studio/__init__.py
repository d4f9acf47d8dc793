"""A tiny Stable Diffusion, made here from nothing, on which the paper's effect can be seen on any machine."""
