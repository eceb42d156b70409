"""File formats of weights: pickles read as data, zip, tar, zarr, torch_dist and safetensors."""
