"""The VM that tests/vm runs in: a kernel with real VFIO devices, and a real QEMU.

`python -m tests.vm.rig` (or `nox -s vm`) builds what is missing into a cache
directory, from Debian's packages and PyPI alone, boots the VM and runs pytest in it.

- `host`: what this machine must be and have
- `cache`: each product once, under a name made of all that went into it
- `debian`: packages of another suite of Debian, unpacked and not installed
- `kernel`, `mtty`: Linux with the sample driver mtty, and what we add to that
- `system`: a root directory with Python and QEMU
- `site`: Python packages
- `project`: the code that is tested
- `archive`: how these three get into the VM
- `machine`: the VM
- `guest/`: what runs as PID 1 in it
"""
