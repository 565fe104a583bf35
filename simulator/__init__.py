"""The worlds: particles, goals, experts, environments. Import the module you need; this file stays light."""
