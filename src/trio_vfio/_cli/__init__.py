"""The command ``trio-vfio``: parses arguments, calls the library, shows results."""
