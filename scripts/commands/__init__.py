"""Parts of scripts/generate_training_data.py."""
