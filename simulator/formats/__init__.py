"""Recordings on disk, format by format."""
