"""Bytes to packets and back, without I/O: no Trio, no descriptors, no clock."""
