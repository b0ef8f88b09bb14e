"""VFIO devices of the kernel."""
