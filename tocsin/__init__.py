"""What Tocsin's services share: the contract between them, the edges to the outside, and the command over them."""

__version__ = "0.1.0"
