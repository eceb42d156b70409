"""Weight files of others read as data: pickles, zip, tar, zarr, torch_dist, safetensors."""
