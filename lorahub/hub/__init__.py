"""The Hugging Face Hub, through its own client. Imported only when a reference leads there."""
