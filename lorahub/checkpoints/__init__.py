"""Whole base models on disk, streamed tensor by tensor: single files, diffusers folders, shards, fp8."""
