"""The policy: backbone, heads, losses, checkpoints. Import the module you need; this file stays light."""
