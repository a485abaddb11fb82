"""Building, distilling and shipping the emulator."""
