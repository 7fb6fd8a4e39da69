"""Latent diffusion on the latents of One-DVA: what the autoencoder is for (see docs/generation.md)."""
