"""Make vectors: latent consistency distillation into a LoRA, and ordinary style fine-tuning."""
