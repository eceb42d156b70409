"""The network: plain single-device PyTorch modules that know nothing of files, tasks or processes."""
