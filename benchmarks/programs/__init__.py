"""Programs that are measured, and what those in Python have in common.

Each can ``receive`` and ``send``, takes the same arguments as the reference in C,
receives from and sends to that, and prints the same.
"""
