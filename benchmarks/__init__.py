"""The suite: `python -m benchmarks` measures every case side by side with the I/O floor and with peers."""
