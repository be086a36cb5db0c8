"""Flash attention in Triton: `host` is what others call, `configs` which tiles there are; the rest are kernels."""
