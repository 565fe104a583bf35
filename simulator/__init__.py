"""The worlds: particle simulator, goals, experts, environments. Import the module you need; this file stays light."""
