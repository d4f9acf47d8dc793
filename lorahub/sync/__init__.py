"""Push, pull and sync between the registry and the Hugging Face Hub; every transfer is verified."""
