"""This machine: its processes, shared memory, locks and files. Standard library only; everyone may import it."""
