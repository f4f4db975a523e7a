"""A mesh on this machine: all services as processes of their own, started, watched and stopped together. Linux only."""
