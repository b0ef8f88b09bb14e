"""How fast it is: measured against C, plain threads and asyncio. See README.md."""
