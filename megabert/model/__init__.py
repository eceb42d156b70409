"""The model: plain single-device PyTorch modules, independent of files, tasks and processes."""
