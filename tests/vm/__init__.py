"""Tests that need the VM: real VFIO devices, and real QEMU at the other end."""
