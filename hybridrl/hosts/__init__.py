"""What the machine is. The only room that knows how to run without CUDA."""
